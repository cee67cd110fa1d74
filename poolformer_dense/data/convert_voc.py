"""From Pascal VOC's XML files to COCO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import UserError
from .coco_builder import CocoBuilder, image_names, read_sizes
from .voc_xml import VocAnnotation, VocObject, bare_name, read_voc

LISTS = Path('ImageSets', 'Main')
_SPLITS = ('train', 'val', 'test')
_DIFFICULT = 'objects are marked as difficult and become crowds, which are ignored'


def convert_voc(
    root: Path,
    classes: Sequence[str] = (),
    images: str = 'JPEGImages',
    annotations: str = 'Annotations',
    progress: bool = False,
) -> dict[str, CocoBuilder]:
    """Read a data set.

    Args:
        root: Its folder.
        classes: Names of the classes in their order; all that occur, sorted, if not given.
        images: The folder of the images, below the root.
        annotations: The folder of the XML files, below the root.
        progress: Show a bar on standard error.

    Returns:
        What goes into the annotation file of each split: train, val and test as far as
        ``ImageSets/Main`` lists them, or else all, of all XML files.

    Raises:
        UserError: A folder or a list is not there, or the names of classes are unclear.
    """
    for folder in (root / images, root / annotations):
        if not folder.is_dir():
            raise UserError(f'there is no folder {folder}; --images and --annotations name others')
    splits = _splits(root, root / annotations)
    files: dict[str, VocAnnotation | str] = {}
    for name in dict.fromkeys(name for names in splits.values() for name in names):
        try:
            files[name] = read_voc(root / annotations / f'{name}.xml')
        except FileNotFoundError:
            files[name] = 'no such file'
        except (OSError, ValueError) as error:
            files[name] = str(error)
    found = (name for f in files.values() if not isinstance(f, str) for name in _names_in(f))
    categories = dict(enumerate(_categories(Counter(found), classes), start=1))
    there = image_names(root / images)
    builders = {}
    for split, names in splits.items():
        builder = builders[split] = CocoBuilder(root, categories)
        paths: dict[str, Path] = {}
        for name in names:
            xml = root / annotations / f'{name}.xml'
            annotation = files[name]
            if isinstance(annotation, str):
                builder.problems.append(f'{xml}: {annotation}')
            elif len(candidates := there.get(name, [])) != 1:
                seen = ', '.join(path.name for path in candidates) or 'none'
                builder.problems.append(f'{xml}: one image of this name is needed; there is {seen}')
            else:
                paths[name] = candidates[0]
        sizes = read_sizes(list(paths.values()), f'reading {split}' if progress else '')
        for name, path in paths.items():
            xml = root / annotations / f'{name}.xml'
            _add(builder, xml, files[name], path, *sizes[path])
    return builders


def _add(
    builder: CocoBuilder,
    xml: Path,
    annotation: VocAnnotation | str,
    path: Path,
    size: tuple[int, int] | None,
    note: str,
) -> None:
    """Add an image and its objects."""
    assert not isinstance(annotation, str)
    if size is None:
        builder.problems.append(f'{path}: {note}')
        return
    stated = annotation.size
    # 0x0 is what some tools write for an unknown size.
    if stated and set(stated) - {'0', ''} and stated != tuple(map(str, size)):
        advice = ''
        if note and stated == (str(size[1]), str(size[0])):
            advice = (
                '; its boxes are of the image before that: take the orientation out of the file'
            )
        builder.problems.append(
            f'{xml}: the size is {stated[0]}x{stated[1]}, but {path.name} has '
            f'{size[0]}x{size[1]} pixels{note}{advice}'
        )
        return
    builder.add_image(path, size)
    labels = {name: i for i, name in builder.categories.items()}
    for thing in annotation.objects:
        try:
            _add_object(builder, thing, labels)
        except ValueError as error:
            builder.problems.append(f'{xml}, line {thing.line}: {error}')


def _add_object(builder: CocoBuilder, thing: VocObject, labels: Mapping[str, int]) -> None:
    if thing.name is None or not thing.name.strip():
        raise ValueError('the object has no name')
    name = thing.name.strip()
    if name not in labels:
        builder.notes[f'objects named {name!r}, which is none of --classes, are left out'] += 1
        return
    if thing.difficult not in ('0', '1'):
        raise ValueError(f'difficult is {thing.difficult!r}, not 0 or 1')
    x1, y1, x2, y2 = thing.box()
    if x2 < x1 or y2 < y1:
        raise ValueError(f'the box goes from {x1:g}, {y1:g} to {x2:g}, {y2:g}')
    if x2 == x1 or y2 == y1:
        builder.notes['boxes are one pixel wide or high'] += 1
    # The first and the last pixel, from 1, become edges from 0.
    builder.add_object(labels[name], (x1 - 1, y1 - 1, x2, y2), crowd=thing.difficult == '1')
    if thing.difficult == '1':
        builder.notes[_DIFFICULT] += 1


def _names_in(annotation: VocAnnotation) -> Iterator[str]:
    names = ((thing.name or '').strip() for thing in annotation.objects)
    return (name for name in names if name)


def _categories(counts: Counter[str], classes: Sequence[str]) -> list[str]:
    """Names in their order; near misses are refused, because each would be a class of its own."""
    if classes and (absent := [name for name in classes if name not in counts]):
        known = ', '.join(sorted(counts))
        raise UserError(f'--classes: no object has the name {absent[0]!r}; there are {known}')
    if len(set(classes)) < len(classes):
        raise UserError('--classes: a name is there twice')
    if not counts:
        raise UserError('no object of the XML files has a name')
    first: dict[str, str] = {}
    for name in [*classes, *sorted(counts)]:
        if first.setdefault(bare_name(name), name) != name:
            other = first[bare_name(name)]
            raise UserError(
                f'{other!r} ({counts[other]} objects) and {name!r} ({counts[name]}) differ in case '
                'or blanks only: give them one name in the XML files'
            )
    return list(classes) or sorted(counts)


def _splits(root: Path, annotations: Path) -> dict[str, list[str]]:
    """The names of the images of each split."""
    lists = {split: root / LISTS / f'{split}.txt' for split in _SPLITS}
    splits = {}
    for split, path in lists.items():
        if not path.is_file():
            continue
        names = []
        for number, line in enumerate(path.read_text(encoding='utf-8-sig').splitlines(), start=1):
            name = line.strip()
            if name and not (annotations / f'{name}.xml').is_file() and len(name.split()) > 1:
                raise UserError(
                    f'{path}, line {number}: there is no {name}.xml: is this the list of one class?'
                )
            names.append(name)
        splits[split] = list(dict.fromkeys(filter(None, names)))
    return splits or {'all': sorted(path.stem for path in annotations.glob('*.xml'))}
