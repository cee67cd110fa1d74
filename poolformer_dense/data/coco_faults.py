"""What is wrong inside a COCO annotation file; no image is opened.

The format: https://cocodataset.org/#format-data. What mmdet 3 and pycocotools do with a fault
decides how grave it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from .faults import Fault, fault

LISTS = ('images', 'annotations', 'categories')
# Pixels beyond the border that pass: rounding, and converters that count pixels inclusively.
TOLERANCE = 1.0

_Size = tuple[float, float] | None  # (width, height) of the image, where it is known
_MISSING = object()


def coco_faults(content: Any, masks: bool = True, evaluated: bool = True) -> list[Fault]:
    """Return what is wrong with the content of an annotation file.

    Args:
        content: The parsed JSON.
        masks: Whether the run uses instance masks. If not, broken ones are warnings, and an
            object without one is no fault.
        evaluated: Whether pycocotools evaluates with the file; training asks for a bit less.
    """
    if not isinstance(content, Mapping):
        return [fault('annotation file', 'the file', f'holds {_shown(content)}, not an object')]
    lists = {}
    for name in LISTS:
        # Test sets are published without annotations.
        entries = content.get(name, [] if evaluated and name == 'annotations' else None)
        if not isinstance(entries, list):
            return [fault('annotation file', 'the file', f'has no list of {name}')]
        lists[name] = entries
    checker = _Checker(masks, evaluated)
    checks = {
        'images': checker.image,
        'categories': checker.category,
        'annotations': checker.annotation,  # last: they refer to the others
    }
    return [
        fault(kind, _name(name, entry, i), detail, (name, i), masks)
        for name, check in checks.items()
        for i, entry in enumerate(lists[name])
        for kind, detail in check(entry)
    ]


class _Checker:
    """Yields kinds and details of what is wrong with entries, and notes what the sound ones are."""

    def __init__(self, masks: bool, evaluated: bool) -> None:
        self.masks, self.evaluated = masks, evaluated
        self.sizes: dict[Any, _Size] = {}  # of images by their id
        self.category_ids: set = set()
        self.category_names: set[str] = set()
        self.annotation_ids: set[int] = set()

    def image(self, entry: Any) -> Iterator[tuple[str, str]]:
        if not isinstance(entry, dict):
            yield 'image entry', f'{_shown(entry)} is not an object'
            return
        file_name = entry.get('file_name', _MISSING)
        if not isinstance(file_name, str) or not file_name:
            yield 'image entry', f'file_name is {_shown(file_name)}'
        size = (entry.get('width', _MISSING), entry.get('height', _MISSING))
        whole = all(_is_number(v) and math.isfinite(v) and v > 0 and v == int(v) for v in size)
        if not whole:
            yield 'image entry', f'width is {_shown(size[0])}, height is {_shown(size[1])}'
        image_id = entry.get('id', _MISSING)
        if not _is_id(image_id):
            yield 'image entry', f'id is {_shown(image_id)}'
        elif image_id in self.sizes:
            yield 'duplicate image id', f'{_shown(file_name)} has the id of an earlier image'
        else:
            self.sizes[image_id] = size if whole else None

    def category(self, entry: Any) -> Iterator[tuple[str, str]]:
        if not isinstance(entry, dict):
            yield 'category entry', f'{_shown(entry)} is not an object'
            return
        category_id, name = entry.get('id', _MISSING), entry.get('name', _MISSING)
        if not _is_id(category_id):
            yield 'category entry', f'id is {_shown(category_id)}'
        elif category_id in self.category_ids:
            yield 'duplicate category', f'{_shown(name)} has the id of an earlier category'
        elif isinstance(name, str) and name in self.category_names:
            yield 'duplicate category', f'{_shown(name)} is the name of an earlier category'
        if not isinstance(name, str):
            yield 'category entry', f'name is {_shown(name)}'
        else:
            self.category_names.add(name)
        if _is_id(category_id):
            self.category_ids.add(category_id)

    def annotation(self, entry: Any) -> Iterator[tuple[str, str]]:
        if not isinstance(entry, dict):
            yield 'annotation entry', f'{_shown(entry)} is not an object'
            return
        annotation_id = entry.get('id', _MISSING)
        if type(annotation_id) is not int:
            yield 'annotation id', f'id is {_shown(annotation_id)}'
        elif annotation_id in self.annotation_ids:
            yield 'duplicate annotation id', 'has the id of an earlier annotation'
        else:
            self.annotation_ids.add(annotation_id)
            if annotation_id == 0 and self.evaluated:
                yield 'annotation id 0', 'pycocotools counts what matches it as a false positive'
        image_id = entry.get('image_id', _MISSING)
        if not _is_id(image_id) or image_id not in self.sizes:
            yield 'unknown image id', f'image_id is {_shown(image_id)}'
            size = None
        else:
            size = self.sizes[image_id]
        category_id = entry.get('category_id', _MISSING)
        if not _is_id(category_id) or category_id not in self.category_ids:
            yield 'unknown category id', f'category_id is {_shown(category_id)}'
        yield from _box(entry.get('bbox', _MISSING), size)
        area = entry.get('area', _MISSING)
        if not _is_number(area):
            yield 'invalid area', f'area is {_shown(area)}'
        elif not math.isfinite(area):
            yield 'NaN or infinite', f'area is {area}'
        elif area <= 0:
            yield 'area not positive', f'area is {area}'
        crowd = entry.get('iscrowd', _MISSING if self.evaluated else 0)
        if not isinstance(crowd, int) or crowd not in (0, 1):
            yield 'iscrowd', f'iscrowd is {_shown(crowd)}, not 0 or 1'
        yield from _segmentation(entry.get('segmentation'), size, self.masks)


def _box(box: Any, size: _Size) -> Iterator[tuple[str, str]]:
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        yield 'invalid box', f'bbox is {_shown(box)}, not four numbers'
        return
    x, y, w, h = box
    if not math.isfinite(x + y + w + h):
        yield 'NaN or infinite', f'bbox is {box}'
    elif w < 0 or h < 0:
        yield 'invalid box', f'bbox is {box}: COCO boxes are x, y, width, height'
    elif w == 0 or h == 0:
        yield 'box of no area', f'bbox is {box}'
    elif size and not (
        x >= -TOLERANCE
        and y >= -TOLERANCE
        and x + w <= size[0] + TOLERANCE
        and y + h <= size[1] + TOLERANCE
    ):
        yield 'box outside image', f'bbox is {box}, the image has {size[0]}x{size[1]} pixels'


def _segmentation(value: Any, size: _Size, masks: bool) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        if problem := rle_problem(value, size):
            yield 'broken RLE', problem
    elif value is None or value == []:
        if masks:
            yield 'no mask', f'segmentation is {_shown(value)}'
    elif isinstance(value, list):
        problems = ((i, polygon_problem(polygon)) for i, polygon in enumerate(value))
        if broken := next((item for item in problems if item[1]), None):
            yield 'broken polygon', 'polygon {} {}'.format(*broken)
        elif size and (out := [i for i, p in enumerate(value) if is_outside(p, size)]):
            yield 'polygon outside image', f'polygon {out[0]}, in {size[0]}x{size[1]} pixels'
    else:
        yield 'broken polygon', f'segmentation is {_shown(value)}'


def polygon_problem(polygon: Any) -> str:
    """Return what is wrong with a polygon x1, y1, x2, y2, ..., or nothing."""
    if not isinstance(polygon, list):
        return f'is {_shown(polygon)}, not a list of numbers'
    try:
        total = sum(polygon)
    except TypeError:
        return f'has {_shown(next(v for v in polygon if not _is_number(v)))} among its numbers'
    if not math.isfinite(total):
        return 'has a number that is NaN or infinite'
    if len(polygon) % 2:
        return f'has {len(polygon)} numbers, which are no pairs'
    if len(polygon) < 6:
        return f'has {len(polygon) // 2} points, fewer than 3'
    return ''


def is_outside(polygon: list[float], size: tuple[float, float]) -> bool:
    """Whether a sound polygon leaves an image of (width, height)."""
    xs, ys = polygon[::2], polygon[1::2]
    return (
        min(xs) < -TOLERANCE
        or min(ys) < -TOLERANCE
        or max(xs) > size[0] + TOLERANCE
        or max(ys) > size[1] + TOLERANCE
    )


def rle_problem(rle: dict, size: _Size) -> str:
    """Return what is wrong with a run-length encoded mask, or nothing.

    Args:
        rle: ``size`` (height, width) and ``counts``: a list of run lengths, or pycocotools' string.
        size: (width, height) of the image.
    """
    shape, counts = rle.get('size', _MISSING), rle.get('counts', _MISSING)
    if not (isinstance(shape, list) and len(shape) == 2 and all(type(v) is int for v in shape)):
        return f'size is {_shown(shape)}, not height and width'
    if size and (shape[1], shape[0]) != size:
        return f'is of {shape[1]}x{shape[0]} pixels, the image has {size[0]}x{size[1]}'
    if isinstance(counts, str):
        counts = _unpack_counts(counts)
        if counts is None:
            return 'counts is not a string that pycocotools wrote'
    elif not (isinstance(counts, list) and all(type(v) is int for v in counts)):
        return f'counts is {_shown(counts)}'
    if min(counts, default=0) < 0:
        return f'has a run of {min(counts)} pixels'
    if sum(counts) != shape[0] * shape[1]:
        return f'its runs sum to {sum(counts)} pixels, not to {shape[0] * shape[1]}'
    return ''


def _unpack_counts(text: str) -> list[int] | None:
    """Run lengths of pycocotools' compressed string; None if it is not one.

    pycocotools itself reads past the end of a broken one. Each number has 5 bits a character, the
    lowest first, bit 6 says that more follow, and from the fourth on it is the difference from
    the number two before (rleToString in cocoapi's maskApi.c).
    """
    codes = np.frombuffer(text.encode('utf-8'), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.append(0, ends[:-1] + 1)
    position = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if position.max() > 6:  # 35 bits: longer than any image
        return None
    numbers = np.add.reduceat((codes & 31) << (5 * position), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers.tolist()


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _name(list_name: str, entry: Any, index: int) -> str:
    """The entry by its id, or by its place where it has none."""
    noun = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}[list_name]
    own = entry.get('id') if isinstance(entry, dict) else None
    name = f'{noun} {own}' if _is_id(own) else f'{noun} at index {index}'
    if noun == 'annotation' and isinstance(entry, dict) and _is_id(entry.get('image_id')):
        name += f' (image {entry["image_id"]})'
    return name


def _shown(value: Any, most: int = 60) -> str:
    if value is _MISSING:
        return 'missing'
    text = repr(value)
    return text if len(text) <= most else text[: most - 3] + '...'
