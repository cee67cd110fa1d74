"""Boxes in Pascal VOC's format: a list of images, an XML file for each, and the images.

What mmdet's XMLDataset does with a fault decides how grave it is: it leaves objects of unknown
names out without a word, and trains on boxes of no area, with which the loss is infinite.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from mmengine.dataset import BaseDataset

from ..errors import UserError
from .coco_faults import TOLERANCE
from .decoding import inspect_image
from .faults import Fault, fault, first_names
from .images import missing_files, read_all
from .source import Source
from .voc_xml import VocAnnotation, VocObject, bare_name, read_voc

_BYTE_ORDER_MARK = '\ufeff'


class VocFiles:
    """The images of one list and their annotation files.

    Attributes:
        path: The list.
        contents: What it holds, in words, once it is read.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = str(source.dataset.ann_file)
        self.contents = 'not read'
        self._ids: list[str] = []
        self._objects: Counter[str] = Counter()  # of each class
        self._unknown: defaultdict[str, list[str]] = defaultdict(list)  # where each name stands

    @staticmethod
    def reads(dataset: BaseDataset) -> bool:
        """Whether a data set has this format."""
        from mmdet.datasets import XMLDataset

        # A subclass that reads its files in another way (WIDER FACE) has another format.
        return (
            isinstance(dataset, XMLDataset)
            and type(dataset).load_data_list is XMLDataset.load_data_list
        )

    def faults(self, quick: bool, title: str = '') -> list[Fault]:
        """Check the list, the annotation files and the images; a quick check opens no image."""
        try:
            lines = Path(self.path).read_text(encoding='utf-8').splitlines()
        except (OSError, UnicodeDecodeError) as error:
            return [fault('annotation file', self.path, f'can not be read: {error}')]
        if not lines:
            return [fault('annotation file', self.path, 'lists no image')]
        self._ids = lines
        return [
            *self._list_faults(),
            *(found for i in range(len(lines)) for found in self._annotation_faults(i)),
            *self._name_faults(),
            *self._image_faults(quick, title),
        ]

    def fix(self, target: Path, faults: Sequence[Fault]) -> Counter[tuple[str, str, str]]:
        """Write the list without the images that have errors.

        Returns:
            How many images were dropped, for which kind of fault.

        Raises:
            UserError: None is left.
        """
        bad = {found.entry[1]: found.kind for found in faults if found.entry}
        kept = [line for i, line in enumerate(self._ids) if i not in bad]
        if not kept:
            raise UserError(f'{self.path}: no image is without a fault')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text('\n'.join(kept) + '\n')
        return Counter(('dropped', 'images', kind) for kind in bad.values())

    def _annotation_path(self, image_id: str) -> Path:
        dataset = self.source.dataset
        return Path(dataset.sub_data_root, dataset.ann_subdir, f'{image_id}.xml')

    def _image_path(self, image_id: str) -> str:
        dataset = self.source.dataset
        return os.path.join(dataset.sub_data_root, dataset.img_subdir, f'{image_id}.jpg')

    def _list_faults(self) -> Iterator[Fault]:
        first: dict[str, int] = {}
        for i, image_id in enumerate(self._ids):
            where = f'{self.path}, line {i + 1}'
            if not image_id.strip():
                yield fault('annotation file', where, 'is blank', ('images', i))
            elif image_id.startswith(_BYTE_ORDER_MARK):
                detail = 'begins with a byte-order mark: save the list without'
                yield fault('annotation file', where, detail)
            elif image_id in first:
                detail = f'{image_id!r} is also line {first[image_id] + 1}'
                yield fault('image listed twice', where, detail, ('images', i))
            first.setdefault(image_id, i)

    def _annotation_faults(self, i: int) -> Iterator[Fault]:
        image_id, entry = self._ids[i], ('images', i)
        path = self._annotation_path(image_id)
        if not image_id.strip() or image_id.startswith(_BYTE_ORDER_MARK):
            return
        try:
            annotation = read_voc(path)
        except OSError:
            detail = 'no such file'
            if len(words := image_id.split()) > 1:
                detail += (
                    f': line {i + 1} of {self.path} is taken as a whole, {image_id!r}; '
                    f'if the image is {words[0]!r}, leave out the rest'
                )
            yield fault('missing annotation', str(path), detail, entry)
            return
        except ValueError as error:
            yield fault('annotation file', str(path), str(error), entry)
            return
        yield from self._object_faults(path, annotation, entry)

    def _object_faults(
        self, path: Path, annotation: VocAnnotation, entry: tuple[str, int]
    ) -> Iterator[Fault]:
        try:
            size = annotation.stated_size()
        except ValueError as error:
            size = None
            yield fault('image entry', str(path), str(error), entry)
        for thing in annotation.objects:
            where = f'{path}, line {thing.line} ({thing.name})'
            if thing.name is None:
                yield fault('annotation entry', where, 'the object has no name', entry)
                continue
            if thing.name not in self.source.classes:
                self._unknown[thing.name].append(f'{path}, line {thing.line}')
                continue
            self._objects[thing.name] += 1
            if not thing.difficult.lstrip('+-').isdecimal():
                detail = f'difficult is {thing.difficult!r}, not 0 or 1'
                yield fault('annotation entry', where, detail, entry)
                continue
            try:
                box = thing.box()
            except ValueError as error:
                yield fault('invalid box', where, str(error), entry)
                continue
            kind, detail = _box_fault(box, size)
            if kind == 'empty box' and not self._trains_on(thing, box):
                kind = 'box of no area'
            elif kind == 'empty box':
                detail += "; dict(type='FilterAnnotations') behind Resize leaves it out"
            if kind:
                broken = kind in ('invalid box', 'empty box')  # mmdet clips the others
                yield fault(kind, where, detail, entry if broken else None)

    def _trains_on(self, thing: VocObject, box: Sequence[float]) -> bool:
        """Whether a box of no area would get into the loss."""
        smallest = self.source.dataset.bbox_min_size or 0
        return (
            self._is_trained()
            and int(thing.difficult) == 0
            and min(box[2] - box[0], box[3] - box[1]) >= smallest
            and all(step.get('type') != 'FilterAnnotations' for _, step in self.source.transforms)
        )

    def _is_trained(self) -> bool:
        return any(place.startswith('train') for place in self.source.places)

    def _name_faults(self) -> Iterator[Fault]:
        classes = self.source.classes
        for name, places in self._unknown.items():
            detail = f'{len(places)} objects are left out, the first in {places[0]}: '
            meant = next((c for c in classes if bare_name(c) == bare_name(name)), None)
            if meant is not None:
                detail += f'the class of the config is {meant!r}; write it as in the files'
                yield fault('misspelt class', repr(name), detail)
            else:
                detail += f'the config has no such class, but {first_names(classes)}'
                yield fault('object left out', repr(name), detail)
        place = f'{self.source.places[0]}.metainfo.classes'
        if not self._objects:
            yield fault('no object', place, f'no object of {self.path} has one of these names')
        elif self._is_trained():
            for name in classes:
                if not self._objects[name]:
                    yield fault('class without object', place, f'{name!r} has none')

    def _image_faults(self, quick: bool, title: str) -> Iterator[Fault]:
        named = [(i, self._image_path(image_id)) for i, image_id in enumerate(self._ids)]
        self.contents = f'{len(named)} images, {sum(self._objects.values())} objects'
        missing = missing_files([path for _, path in named])
        others = _by_stem({os.path.dirname(path) for _, path in named} if any(missing) else ())
        for (i, path), gone in zip(named, missing, strict=True):
            if gone and self._ids[i].strip():
                detail = 'no such file'
                if other := others.get(os.path.splitext(path)[0]):
                    detail += (
                        f'; there is {other}, but XMLDataset reads .jpg only: '
                        'tools/convert_data.py makes a COCO file of these annotations'
                    )
                yield fault('missing image', path, detail, ('images', i))
        if quick:
            return
        named = [item for item, gone in zip(named, missing, strict=True) if not gone]
        read = partial(inspect_image, decoder=self.source.decoder)
        results = read_all(read, [path for _, path in named], title)
        for (i, path), (size, note, remark) in zip(named, results, strict=True):
            if size is None:
                yield fault('unreadable image', path, note, ('images', i))
                continue
            if remark:
                yield fault('odd image', path, remark)
            try:
                stated = read_voc(self._annotation_path(self._ids[i])).stated_size()
            except (OSError, ValueError):
                continue
            if stated not in (None, size):
                detail = 'has {}x{} pixels{}, its annotation says {}x{}'.format(
                    *size, note, *(stated or ())
                )
                yield fault('wrong image size', path, detail, ('images', i))


def _box_fault(box: Sequence[float], size: tuple[int, int] | None) -> tuple[str, str]:
    """Return the kind of what is wrong with a box, and the detail; empty if nothing is."""
    # As mmdet reads them: whole pixels from 0.
    x1, y1, x2, y2 = (int(value) - 1 for value in box)
    detail = 'xmin, ymin, xmax, ymax are {:g}, {:g}, {:g}, {:g}'.format(*box)
    if x2 < x1 or y2 < y1:
        return 'invalid box', detail
    if x2 == x1 or y2 == y1:
        return 'empty box', detail
    if size is None:
        return '', ''
    detail += f', the image has {size[0]}x{size[1]} pixels'
    if x2 <= 0 or y2 <= 0 or x1 >= size[0] or y1 >= size[1]:
        return 'empty box', detail + ': nothing is left when it is clipped'
    if min(x1, y1) < -TOLERANCE or x2 > size[0] + TOLERANCE or y2 > size[1] + TOLERANCE:
        return 'box outside image', detail
    return '', ''


def _by_stem(folders: Iterable[str]) -> dict[str, str]:
    """Names of the files in folders by their paths without suffix."""
    return {
        os.path.join(folder, os.path.splitext(name)[0]): name
        for folder in folders
        if os.path.isdir(folder)
        for name in os.listdir(folder)
    }
