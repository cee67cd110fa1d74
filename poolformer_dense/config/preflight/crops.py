"""To which size the crops of segmentation are padded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..walk import entries_of, type_name, walk
from .plan import Notice, Plan

# Steps after which the size is not known.
_RESIZING = ('Resize', 'Rescale', 'Mosaic', 'Albu', 'Choice', 'Apply', 'Rot')


def check_crop(plan: Plan) -> Iterator[Notice]:
    """Whether training crops have the size that the data preprocessor makes."""
    processor = data_preprocessor(plan)
    if processor is None or 'train' not in plan.splits:
        return
    place = 'model.data_preprocessor'
    size, divisor = processor.get('size'), processor.get('size_divisor')
    if (size is None) == (divisor is None):
        said = 'neither size nor' if size is None else 'both size and'
        text = (
            f'{place} has {said} size_divisor; training needs one of the two, e.g. --cfg-options '
            f'"{place}.size=(512,512)" {place}.size_divisor=None'
        )
        yield Notice(logging.ERROR, text)
    if size is None:
        return
    size = tuple(size)
    for where, pipeline in train_pipelines(plan):
        crop = _cropped_to(pipeline)
        if crop is None or crop == size:
            continue
        option = f'--cfg-options "{place}.size=({crop[0]},{crop[1]})"'
        shape, target = (f'{height}x{width}' for height, width in (crop, size))
        padded = (max(crop[0], size[0]), max(crop[1], size[1]))
        if padded != crop:
            share = 1 - crop[0] * crop[1] / (padded[0] * padded[1])
            text = (
                f'{where}: crops of {shape} are padded to {place}.size, {target}: {share:.0%} of '
                f'what is computed is padding; {option}'
            )
            yield Notice(logging.WARNING, text)
        else:
            text = (
                f'{where}: crops of {shape} exceed {place}.size, {target}: an image that is '
                f'smaller than the crop makes a batch of unequal sizes, which stops the training; '
                f'{option}'
            )
            sure = _may_be_smaller(pipeline, crop) and plan.cfg.train_dataloader.batch_size > 1
            yield Notice(logging.ERROR if sure else logging.WARNING, text)


def data_preprocessor(plan: Plan) -> Mapping[str, Any] | None:
    """The data preprocessor, if it is mmseg's."""
    processor = (plan.cfg.get('model') or {}).get('data_preprocessor')
    return processor if type_name(processor) == 'SegDataPreProcessor' else None


def train_pipelines(plan: Plan) -> list[tuple[str, Sequence[Mapping[str, Any]]]]:
    """The pipelines of the training data, also those of wrappers, with their places."""
    loader = plan.cfg.get('train_dataloader') or {}
    return [
        (place, [step for _, step in entries_of(node)])
        for place, node in walk(loader.get('dataset'), 'train_dataloader.dataset')
        if place.endswith('.pipeline')
    ]


def is_padded(processor: Mapping[str, Any], pipeline: Sequence[Mapping[str, Any]]) -> bool:
    """Whether some training crops are padded, as far as the config alone tells."""
    size, crop = processor.get('size'), _cropped_to(pipeline)
    if size is None or crop is None:
        return False
    size = tuple(size)
    return crop[0] < size[0] or crop[1] < size[1] or _may_be_smaller(pipeline, size)


def _cropped_to(pipeline: Sequence[Mapping[str, Any]]) -> tuple[int, int] | None:
    """Return the (height, width) that images have at most, None if no step says it."""
    size = None
    for step in pipeline:
        name = type_name(step)
        if name in ('RandomCrop', 'CenterCrop'):
            crop = step['crop_size']
            size = (crop, crop) if isinstance(crop, int) else tuple(crop)
            size = size[::-1] if name == 'CenterCrop' else size  # mmcv's: width first
        elif name == 'Pad' and step.get('size'):
            size = tuple(step['size'])[::-1]
        elif any(word in name for word in _RESIZING):
            size = None
    return size


def _may_be_smaller(pipeline: Sequence[Mapping[str, Any]], size: Sequence[int]) -> bool:
    """Whether the last resizing before the crop may leave less than (height, width)."""
    resized: tuple[float, float] | None = None
    for step in pipeline:
        name = type_name(step)
        if name in ('Resize', 'RandomResize'):
            scale, ratio = step.get('scale'), (step.get('ratio_range') or (1.0,))[0]
            resized = None
            if isinstance(scale, (tuple, list)) and all(isinstance(s, int) for s in scale):
                resized = (min(scale) * ratio, max(scale) * ratio)
        elif name in ('RandomCrop', 'CenterCrop'):
            break
        elif any(word in name for word in _RESIZING) or name == 'Pad':
            resized = None
    return resized is not None and (resized[0] < min(size) - 1 or resized[1] < max(size) - 1)
