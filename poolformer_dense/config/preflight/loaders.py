"""Whether shared memory holds the batches that data loading workers hand over."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...shared_memory import FOLDER, REMEDY, Room, megabytes, room_for_batches
from ..walk import entries_of, type_name, walk
from .plan import Notice, Plan

_CHANNELS = 3  # of bytes: images become floats in the model's data preprocessor
# The least part of a scale's area that an image fills which keeps its ratio: one of 1:4.
_KEPT = 0.4
# Beginnings and ends of the names of steps that leave the size as it is.
_SAME_SIZE = ('Load', 'Pack', 'RandomFlip', 'Filter', 'PhotoMetric', 'Pad', 'FixShape', 'Color')


class _Pixels(NamedTuple):
    """How many an image has: at the least for sure, 0 if unknown; and at the most."""

    least: float
    most: float | None


def check_shared_memory(plan: Plan) -> Iterator[Notice]:
    """Whether /dev/shm holds one batch, which is needed, and all that workers prepare ahead.

    Sizes are estimated from the pipelines; where they do not tell, nothing is said.
    """
    room = room_for_batches()
    if room is not None:
        for split in plan.splits:
            yield from _of_loader(plan, split, room)


def _of_loader(plan: Plan, split: str, room: Room) -> Iterator[Notice]:
    place = f'{split}_dataloader'
    loader = plan.cfg.get(place)
    if not isinstance(loader, Mapping) or not loader.get('num_workers'):
        return
    images = loader.get('batch_size') or 1
    pipelines = [
        [step for _, step in entries_of(node)]
        for where, node in walk(loader.get('dataset'), 'dataset')
        if where.endswith('.pipeline')
    ]
    sizes = [_pixels(pipeline) for pipeline in pipelines]
    least = min((size.least for size in sizes), default=0) * images * _CHANNELS
    most = max((size.most or 0 for size in sizes), default=0) * images * _CHANNELS
    if least > room.free:
        text = (
            f'{place}: a batch of {images} images takes {megabytes(least)} of shared memory or '
            f'more, and {FOLDER} has {room}; {REMEDY}: --cfg-options {place}.num_workers=0'
        )
        yield Notice(logging.ERROR, text)
        return
    workers, processes = loader['num_workers'], _processes_here()
    batches = workers * (loader.get('prefetch_factor') or 2) * processes
    if batches * most > room.free:
        text = (
            f'{place}: {processes} x {workers} workers prepare up to {batches} batches of '
            f'{megabytes(most)}, and {FOLDER} has {room}: a worker may find no room; {REMEDY}'
        )
        yield Notice(logging.WARNING, text)


def _pixels(pipeline: Sequence[Mapping[str, Any]]) -> _Pixels:
    """Estimate the size of what a pipeline makes."""
    least, most = 0.0, None
    for step in pipeline:
        name = type_name(step)
        if 'Resize' in name:
            least, most = _resized(step)
        elif name in ('RandomCrop', 'CenterCrop'):
            crop = step['crop_size']
            height, width = (crop, crop) if isinstance(crop, (int, float)) else crop
            area = height * width
            if step.get('crop_type', 'absolute') != 'absolute' or area <= 1:
                least = 0
            else:
                least, most = min(least, area), area if most is None else min(most, area)
        elif not name.startswith(_SAME_SIZE):
            least = 0
    return _Pixels(least, most)


def _resized(step: Mapping[str, Any]) -> _Pixels:
    scales = step.get('scales') or [step.get('scale')]
    if isinstance(scales[0], (int, float)):
        scales = [scales]
    if not all(isinstance(scale, (tuple, list)) and len(scale) == 2 for scale in scales):
        return _Pixels(0, None)
    areas = [width * height for width, height in scales]
    least, most = step.get('ratio_range') or (1, 1)
    name = type_name(step)
    keeps = step.get('keep_ratio', name not in ('Resize', 'RandomResize'))
    return _Pixels(min(areas) * least**2 * (_KEPT if keeps else 1), max(areas) * most**2)


def _processes_here() -> int:
    """How many processes of the run are on this host, as torchrun and Slurm say."""
    for name in ('LOCAL_WORLD_SIZE', 'SLURM_NTASKS_PER_NODE'):
        if os.environ.get(name, '').isdigit():
            return int(os.environ[name])
    return 1
