"""From YOLO's text files to COCO: a YAML file, images, and a text file for each.

The format: https://docs.ultralytics.com/datasets/detect and /segment. A row is a class and either a
box (centre, width, height) or a polygon, as shares of the image.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..errors import UserError
from .coco_builder import IMAGE_SUFFIXES, CocoBuilder, read_sizes

SPLITS = ('train', 'val', 'test')
# Shares that pass beyond 0 and 1, as rounding leaves them; they are clipped.
_TOLERANCE = 0.01
_NO_LABELS = 'images have no label file and become images without objects'


def convert_yolo(file: Path, progress: bool = False) -> dict[str, CocoBuilder]:
    """Read a data set.

    Args:
        file: Its YAML file.
        progress: Show a bar on standard error.

    Returns:
        What goes into the annotation file of each split that the YAML file names.

    Raises:
        UserError: The YAML file is wrong, or what it names is not there.
    """
    content = _read_yaml(file)
    categories = {index + 1: name for index, name in _names(content, file).items()}
    root = _root(content, file)
    entries = {'val' if key == 'valid' else key: value for key, value in content.items()}
    splits = {split: entries[split] for split in SPLITS if entries.get(split)}
    if not splits:
        raise UserError(f'{file} has none of train, val and test')
    builders = {}
    for split, places in splits.items():
        builder = builders[split] = CocoBuilder(root, categories)
        images = list(dict.fromkeys(_images(places, root, f'{file}: {split}')))
        _add(builder, images, f'reading {split}' if progress else '')
    return builders


def parse_row(row: str) -> tuple[int, list[float]]:
    """Return the class of a row and its 4 numbers of a box, or the pairs of a polygon.

    Raises:
        ValueError: It is neither.
    """
    words = row.split()
    try:
        kind, *values = (float(word) for word in words)
    except ValueError:
        raise ValueError(f'{row[:60]!r} is not a row of numbers') from None
    if kind != kind // 1 or kind < 0:
        raise ValueError(f'the class is {words[0]}, not a whole number from 0 on')
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(
            f'has {len(values)} numbers behind the class; a box has 4 and a polygon an even number '
            'from 6 on'
        )
    for value in values:
        if not math.isfinite(value) or not -_TOLERANCE <= value <= 1 + _TOLERANCE:
            raise ValueError(f'{value:g} is not between 0 and 1; are these pixels?')
    if len(values) == 4 and min(values[2:]) <= 0:
        raise ValueError(f'width and height are {values[2]:g} and {values[3]:g}')
    return int(kind), values


def _add(builder: CocoBuilder, images: Sequence[Path], title: str) -> None:
    """Add images and the objects of their label files."""
    labels = {path: _label_file(path) for path in images}
    sizes = read_sizes(images, title)
    missing = 0
    for path in images:
        size, note = sizes[path]
        if size is None:
            builder.problems.append(f'{path}: {note}')
            continue
        builder.add_image(path, size)
        if not labels[path].is_file():
            missing += 1
            continue
        try:
            text = labels[path].read_text(encoding='utf-8-sig')
        except (OSError, UnicodeDecodeError) as error:
            builder.problems.append(f'{labels[path]}: can not be read: {error}')
            continue
        _add_rows(builder, text, labels[path], size)
    if missing and missing == len(builder.images):
        raise UserError(
            f'none of {missing} images has a label file; that of {images[0]} should be '
            f'{labels[images[0]]}'
        )
    if missing:
        builder.notes[_NO_LABELS] += missing
    known = set(labels.values())
    there = {path for folder in {label.parent for label in known} for path in folder.glob('*.txt')}
    orphans = [path for path in there - known if path.name != 'classes.txt']
    if orphans:
        builder.notes['label files belong to no image of the split'] += len(orphans)


def _add_rows(builder: CocoBuilder, text: str, path: Path, size: tuple[int, int]) -> None:
    seen: set[tuple[float, ...]] = set()
    for number, row in enumerate(text.splitlines(), start=1):
        if not row.strip():
            continue
        try:
            kind, values = parse_row(row)
            if kind + 1 not in builder.categories:
                count = len(builder.categories)
                raise ValueError(f'class {kind} is not among the {count} names of the YAML file')
            if (kind, *values) in seen:
                builder.notes['rows stand twice in a file and are taken once'] += 1
                continue
            seen.add((kind, *values))
            pixels = [value * size[i % 2] for i, value in enumerate(values)]
            if len(values) == 4:
                x, y, w, h = pixels
                builder.add_object(kind + 1, (x - w / 2, y - h / 2, x + w / 2, y + h / 2))
            else:
                xs, ys = pixels[::2], pixels[1::2]
                box = (min(xs), min(ys), max(xs), max(ys))
                builder.add_object(kind + 1, box, pixels)
        except ValueError as error:
            builder.problems.append(f'{path}, line {number}: {error}')


def _label_file(image: Path) -> Path:
    """The label file of an image: the last folder called images becomes labels."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == 'images':
            parts[i] = 'labels'
            break
    return Path(*parts).with_suffix('.txt')


def _images(places: Any, root: Path, place: str) -> Iterator[Path]:
    """The images that an entry of the YAML file names: folders, lists, or several of both."""
    for entry in places if isinstance(places, list) else [places]:
        if not isinstance(entry, str):
            raise UserError(f'{place}: {entry!r} is not the path of a folder or a list of images')
        path = _existing(root, entry)
        if path is None:
            raise UserError(f'{place}: there is no {Path(root, entry)}')
        if path.is_dir():
            yield from (p for p in sorted(path.rglob('*')) if p.suffix.lower() in IMAGE_SUFFIXES)
            continue
        for number, line in enumerate(_read(path).splitlines(), start=1):
            if name := line.strip():
                image = _existing(path.parent, name) or _existing(root, name)
                if image is None:
                    raise UserError(f'{path}, line {number}: there is no image {name}')
                yield image


def _existing(folder: Path, entry: str) -> Path | None:
    # Roboflow's exports begin with ../ though they mean the YAML file's own folder.
    for name in (entry, entry.removeprefix('../')):
        path = Path(os.path.normpath(Path(folder, name)))
        if path.exists():
            return path
    return None


def _root(content: Mapping[str, Any], file: Path) -> Path:
    stated = content.get('path') or '.'
    folder = file.absolute().parent
    if not isinstance(stated, str):
        raise UserError(f'{file}: path is {stated!r}, not a folder')
    for path in (folder / stated, Path.cwd() / stated):
        if path.is_dir():
            return Path(os.path.normpath(path))
    raise UserError(f'{file}: path: there is no folder {folder / stated} nor {Path.cwd() / stated}')


def _names(content: Mapping[str, Any], file: Path) -> dict[int, str]:
    """The class names by index."""
    if content.get('kpt_shape'):
        raise UserError(
            f'{file} has kpt_shape: boxes and polygons are converted, keypoints are not'
        )
    names = content.get('names')
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(f'{file} has no names: a list of class names, or a mapping from 0 on')
    for index, name in names.items():
        if type(index) is not int or index < 0:
            raise UserError(f'{file}: names: {index!r} is not the number of a class')
        if type(name) not in (str, int):
            raise UserError(f'{file}: names: that of class {index} is {name!r}: put it in quotes')
    texts = {index: str(names[index]).strip() for index in sorted(names)}
    if doubles := {name for name in texts.values() if list(texts.values()).count(name) > 1}:
        raise UserError(f'{file}: names: {min(doubles)!r} is there twice; each class needs its own')
    if content.get('nc') not in (None, len(texts)):
        raise UserError(f'{file}: nc is {content["nc"]}, but there are {len(texts)} names')
    return texts


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(_read(file))
    except yaml.YAMLError as error:
        reason = ' '.join(str(error).split())
        raise UserError(f'{file} is not YAML: {reason}') from error
    if not isinstance(content, dict):
        raise UserError(f'{file} is not the YAML file of a data set: it has no entries')
    return content


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'{file} can not be read: {error}') from error
