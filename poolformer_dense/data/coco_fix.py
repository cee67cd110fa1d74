"""Clean a COCO annotation file: repair what can be repaired for sure and drop the rest.

The rules are in docs/verify_data.md.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .coco_faults import LISTS, coco_faults, is_outside, polygon_problem, rle_problem
from .faults import Fault

_DROPPED = ''


def clean(content: dict, faults: Sequence[Fault], masks: bool, evaluated: bool) -> Counter:
    """Repair or drop the faulty entries of an annotation file's content, in place.

    Args:
        content: The parsed JSON.
        faults: What `coco_faults` found in it, and the faults of its image files.
        masks: As for `coco_faults`.
        evaluated: As for `coco_faults`.

    Returns:
        How often each thing was done; keys are what, to which list's entry, for which kind.
    """
    done: Counter = Counter()
    cascade = False
    # A dropped entry can leave others without their image or category: look again.
    while any(found.entry for found in faults):
        _Pass(content, masks, done, cascade).run(faults)
        faults, cascade = coco_faults(content, masks, evaluated), True
    return done


class _Pass:
    """One time through the faults of a file."""

    def __init__(self, content: dict, masks: bool, done: Counter, cascade: bool) -> None:
        self.content, self.masks, self.done, self.cascade = content, masks, done, cascade
        self.dropped: dict[str, set[int]] = {name: set() for name in LISTS}
        self.first: dict[str, dict[Any, tuple[int, dict]]] = {name: {} for name in LISTS}
        for name in LISTS:
            for i, entry in enumerate(content.get(name, [])):
                if isinstance(entry, dict) and type(entry.get('id')) in (int, str):
                    self.first[name].setdefault(entry['id'], (i, entry))
        numbers = (number for number in self.first['annotations'] if isinstance(number, int))
        self.last_id = max(numbers, default=0)

    def run(self, faults: Sequence[Fault]) -> None:
        for found in faults:
            name, i = found.entry or ('', 0)
            if name == 'file':
                self.done['rewritten', name, found.kind] += 1
            if name not in self.dropped or i in self.dropped[name]:
                continue
            what = self._repair(found.kind, name, self.content[name][i])
            kind = found.kind
            if what == _DROPPED:
                self.dropped[name].add(i)
                if self.cascade and kind in ('unknown image id', 'unknown category id'):
                    kind = f'its {kind.split()[1]} was dropped'
            self.done[what or 'dropped', name, kind] += 1
        for name, gone in self.dropped.items():
            if gone:
                entries = self.content[name]
                entries[:] = [entry for i, entry in enumerate(entries) if i not in gone]

    def _repair(self, kind: str, name: str, entry: Any) -> str:
        """Repair one fault; return what was done, or `_DROPPED`."""
        if kind == 'duplicate image id':
            i, first = self.first[name][entry['id']]
            if first != entry:  # whose are the objects? The next pass drops them
                self.dropped[name].add(i)
            return _DROPPED
        if kind == 'duplicate category':
            return self._merge_category(entry)
        if kind == 'duplicate annotation id' and self.first[name][entry['id']][1] == entry:
            return _DROPPED
        if kind in ('annotation id', 'duplicate annotation id', 'annotation id 0'):
            self.last_id += 1
            entry['id'] = self.last_id
            return 'given a new id'
        if kind == 'box outside image':
            image = self.first['images'][entry['image_id']][1]
            return _clip_box(entry, image['width'], image['height'])
        if kind in ('NaN or infinite', 'invalid area', 'area not positive'):
            return _area_of_box(entry)
        if kind == 'iscrowd':
            return _repair_crowd(entry)
        if kind in ('broken polygon', 'polygon outside image', 'broken RLE'):
            image = self.first['images'].get(entry.get('image_id'), (0, {}))[1]
            return self._repair_mask(entry, image.get('width'), image.get('height'))
        return _DROPPED

    def _merge_category(self, entry: dict) -> str:
        objects = self.content['annotations']
        of_id = [i for i, o in enumerate(objects) if o.get('category_id') == entry['id']]
        _, first = self.first['categories'][entry['id']]
        if first is not entry and first.get('name') != entry.get('name'):
            self.dropped['annotations'].update(of_id)  # it is unknown which of the two they mean
            self.done['dropped', 'annotations', 'two categories have its category id'] += len(of_id)
        elif first is entry:  # another id of the same name
            names = ((c.get('name'), i) for i, (_, c) in self.first['categories'].items())
            category_id = next(i for name, i in names if name == entry['name'])
            for i in of_id:
                objects[i]['category_id'] = category_id
            self.done[
                'given the first id of its category', 'annotations', 'duplicate category'
            ] += len(of_id)
        return _DROPPED

    def _repair_mask(self, entry: dict, width: Any, height: Any) -> str:
        value = entry['segmentation']
        size = (width, height) if all(type(v) in (int, float) for v in (width, height)) else None
        kept: Any = []
        if isinstance(value, dict) and not rle_problem(value, size):
            kept = value
        elif isinstance(value, list):
            kept = [polygon for polygon in value if not polygon_problem(polygon)]
            if size:
                kept = [p if not is_outside(p, size) else _clip_polygon(p, *size) for p in kept]
            kept = [polygon for polygon in kept if polygon]
        if not kept and self.masks:
            return _DROPPED
        entry['segmentation'] = kept
        return 'given the sound part of its mask' if kept else 'left without its mask'


def _clip_box(entry: dict, width: float, height: float) -> str:
    x, y, w, h = entry['bbox']
    left, top = max(x, 0), max(y, 0)
    w, h = min(x + w, width) - left, min(y + h, height) - top
    if w <= 0 or h <= 0:
        return _DROPPED
    entry['bbox'] = [left, top, w, h]
    if type(entry.get('area')) in (int, float) and entry['area'] > w * h:
        entry['area'] = w * h
    return 'clipped to the image'


def _clip_polygon(polygon: list[float], width: float, height: float) -> list[float]:
    """Move the points beyond the border to it; nothing is left if that makes it a line."""
    xs = [min(max(x, 0), width) for x in polygon[::2]]
    ys = [min(max(y, 0), height) for y in polygon[1::2]]
    if min(xs) == max(xs) or min(ys) == max(ys):
        return []
    return [value for point in zip(xs, ys, strict=True) for value in point]


def _area_of_box(entry: dict) -> str:
    box = entry.get('bbox')
    if not (isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) for v in box)):
        return _DROPPED
    if not math.isfinite(sum(box)) or min(box[2:]) <= 0:
        return _DROPPED
    entry['area'] = box[2] * box[3]
    return 'given the area of its box'


def _repair_crowd(entry: dict) -> str:
    meant = {'0': 0, '1': 1, '0.0': 0, '1.0': 1, 'missing': 0}.get(
        str(entry.get('iscrowd', 'missing'))
    )
    if meant is None:
        return _DROPPED
    entry['iscrowd'] = meant
    return 'given iscrowd as a number'
