"""A COCO annotation file and its images: what is wrong with them, and a repaired file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmengine.dataset import BaseDataset

from ..errors import UserError
from .categories import missing_problem, order_problem
from .coco_faults import coco_faults
from .coco_filters import filtered
from .coco_fix import clean
from .coco_json import hold_json, is_plain_text, no_collector, take_json
from .decoding import inspect_image
from .faults import Fault, fault
from .images import missing_files, read_all
from .label_order import has_class_order
from .source import Source


class CocoFile:
    """The annotation file of one data set.

    Attributes:
        path: Its path.
        contents: What it holds, in words, once it is read.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.path = str(source.dataset.ann_file)
        self.contents = 'not read'
        self._content: Any = None

    @staticmethod
    def reads(dataset: BaseDataset) -> bool:
        """Whether a data set has this format."""
        from mmdet.datasets import CocoDataset

        own = type(dataset)
        # A subclass that reads its file in another way (LVIS, panoptic) has another format.
        return (
            isinstance(dataset, CocoDataset)
            and own.load_data_list is CocoDataset.load_data_list
            and own.COCOAPI is CocoDataset.COCOAPI
        )

    def faults(self, quick: bool, title: str = '') -> list[Fault]:
        """Check the file and its images; a quick check opens none of them."""
        source = self.source
        with no_collector():
            try:
                content = take_json(self.path)
            except (ValueError, RecursionError) as error:
                return [fault('annotation file', self.path, f'is not JSON: {error}')]
            faults = coco_faults(content, source.masks, source.evaluated)
        if any(found.kind == 'annotation file' for found in faults):
            return faults
        if not is_plain_text(self.path):
            detail = 'pycocotools reads UTF-8 without a byte-order mark alone; --fix OUT writes it'
            faults.append(fault('encoding', self.path, detail, ('file', 0)))
        self._content = content
        self.contents = (
            f'{len(content["images"])} images, {len(content.get("annotations", []))} annotations'
        )
        names = [str(c.get('name')) for c in content['categories'] if isinstance(c, dict)]
        problem = missing_problem(self.path, names, source.classes)
        if not problem and not has_class_order(type(source.dataset)):
            problem = order_problem(self.path, names, source.classes)
        if problem:
            faults.append(fault('classes', f'{source.places[0]}.ann_file', problem))
        faults += self._filter_faults() + self._image_faults(quick, title)
        if quick:
            hold_json(self.path, content)
        return faults

    def fix(self, target: Path, faults: Sequence[Fault]) -> Counter[tuple[str, str, str]]:
        """Write the file without the faulty entries, repaired where that can be done for sure.

        Returns:
            How often each thing was done, as `coco_fix.clean` counts it.

        Raises:
            UserError: No image is left.
        """
        done = clean(self._content, faults, self.source.masks, self.source.evaluated)
        if not self._content['images']:
            raise UserError(f'{self.path}: no image is left without a fault, so no file is written')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self._content))
        return done

    def _filter_faults(self) -> list[Fault]:
        """Whether images are left after the filters, and objects to train on."""
        faults = []
        for place, (dataset, node) in zip(self.source.places, self.source.members, strict=True):
            left = filtered(self._content, dataset, node.get('indices'))
            if not left.images:
                faults.append(fault('no image left', place, left.told()))
            elif place.startswith('train') and not left.objects:
                detail = 'no object of its classes is in its images, so there is nothing to learn'
                faults.append(fault('nothing to learn', place, detail))
        return faults

    def _image_faults(self, quick: bool, title: str) -> list[Fault]:
        """Whether the images are there and, unless `quick`, whole and of the size stated."""
        folder = self.source.dataset.data_prefix.get('img') or ''
        named = [
            (i, entry, os.path.join(folder, entry['file_name']))
            for i, entry in enumerate(self._content['images'])
            if isinstance(entry, dict) and isinstance(entry.get('file_name'), str)
        ]
        missing = missing_files([path for _, _, path in named])
        faults = [
            fault('missing image', path, f'image {entry.get("id")} has no file', ('images', i))
            for (i, entry, path), gone in zip(named, missing, strict=True)
            if gone
        ]
        if quick:
            return faults
        named = [item for item, gone in zip(named, missing, strict=True) if not gone]
        read = partial(inspect_image, decoder=self.source.decoder)
        results = read_all(read, [path for _, _, path in named], title)
        for (i, entry, path), (size, note, remark) in zip(named, results, strict=True):
            stated = entry.get('width'), entry.get('height')
            if remark:
                detail = f'image {entry.get("id")}: {remark}'
                faults.append(fault('odd image', path, detail))
            if size is None:
                detail = f'image {entry.get("id")}: {note}'
                faults.append(fault('unreadable image', path, detail, ('images', i)))
            elif size != stated:
                detail = (
                    f'image {entry.get("id")} has {size[0]}x{size[1]} pixels{note}, the annotation '
                    f'file says {stated[0]}x{stated[1]}'
                )
                faults.append(fault('wrong image size', path, detail, ('images', i)))
        return faults
