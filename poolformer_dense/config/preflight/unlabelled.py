"""Which label of the label maps is unlabelled: losses, data and evaluators leave out the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence

from ...data.source import Source
from ..decode_heads import (
    UNLABELLED,
    DecodeHead,
    argument,
    class_of,
    decode_heads,
    label_metrics,
)
from ..walk import type_name
from .crops import data_preprocessor, is_padded, train_pipelines
from .plan import Notice, Plan

# Steps that fill new pixels of label maps: the argument, and its default.
_FILLING = {
    'Pad': ('pad_val', UNLABELLED),
    'RandomRotate': ('seg_pad_val', UNLABELLED),
    'RandomMosaic': ('seg_pad_val', UNLABELLED),
    'RandomCutOut': ('seg_fill_in', None),
    'BioMedical3DPad': ('seg_pad_val', 0),
}


def check_unlabelled(plan: Plan) -> Iterator[Notice]:
    """Whether losses, data, padding and evaluators leave out the same label."""
    yield from _reduced_apart(plan)
    heads = decode_heads(plan.cfg)
    if not heads:
        return
    yield from _heads_differ(plan, heads)
    for source in plan.sources:
        yield from _reduced_differs(plan, heads[0], source)
    for split in plan.splits:
        if split != 'train':
            yield from _evaluators_differ(plan, heads[0], split)
    if 'train' in plan.splits:
        yield from _filling_differs(plan, heads[0])


def _heads_differ(plan: Plan, heads: Sequence[DecodeHead]) -> Iterator[Notice]:
    main = heads[0]
    for head in heads:
        if head.num_classes == main.num_classes and head.ignore_index != main.ignore_index:
            text = (
                f'{head.place}.ignore_index={head.ignore_index}, but {main.place}.ignore_index='
                f'{main.ignore_index}: one would train on what the other leaves out; --cfg-options '
                f'{head.place}.ignore_index={main.ignore_index}'
            )
            yield Notice(logging.ERROR, text)
        for place, loss in head.losses:
            kind = class_of(plan.cfg, loss)
            if not isinstance(kind, type) or not kind.__module__.startswith('mmseg.'):
                continue
            for name in ('ignore_index', 'ignore_label'):
                value = argument(kind, loss, name, missing=head.ignore_index)
                outside = {value, head.ignore_index}.isdisjoint(range(head.channels))
                # Dice leaves out the channel of this number, if there is one.
                if value == head.ignore_index or (type_name(loss) == 'DiceLoss' and outside):
                    continue
                text = (
                    f'{place}.{name}={value}, but {head.place}.ignore_index={head.ignore_index}: '
                    f'the loss would train on what the head leaves out; --cfg-options '
                    f'{place}.{name}={head.ignore_index}'
                )
                yield Notice(logging.ERROR, text)


def _reduced_apart(plan: Plan) -> Iterator[Notice]:
    """Of label maps that lie side by side: whether all are read in one way."""
    known: dict[str, Source] = {}
    for source in plan.sources:
        folder = (source.dataset.data_prefix or {}).get('seg_map_path')
        if not folder or not hasattr(source.dataset, 'reduce_zero_label'):
            continue
        first = known.setdefault(os.path.dirname(os.path.normpath(folder)), source)
        mine, theirs = source.dataset.reduce_zero_label, first.dataset.reduce_zero_label
        if mine != theirs:
            text = (
                f'{source.places[0]}.reduce_zero_label={mine}, but {first.places[0]}'
                f'.reduce_zero_label={theirs}, with label maps in one folder: each class would '
                'have two numbers; set both to the same'
            )
            yield Notice(logging.ERROR, text)


def _reduced_differs(plan: Plan, head: DecodeHead, source: Source) -> Iterator[Notice]:
    """Of a data set that turns labels into 255: whether 255 is left out."""
    reduced = getattr(source.dataset, 'reduce_zero_label', False)
    renumbered = UNLABELLED in (getattr(source.dataset, 'label_map', None) or {}).values()
    if not reduced and not renumbered:
        return
    what = 'reduce_zero_label=True turns label 0' if reduced else 'metainfo turns other classes'
    for place in source.places:
        split = place.partition('_dataloader')[0]
        readers = [(head.place, head.ignore_index)]
        if split != 'train':
            metrics = label_metrics(plan.cfg, split)
            readers = [(where, m.get('ignore_index', UNLABELLED)) for where, m in metrics]
        for where, value in readers:
            if value != UNLABELLED:
                text = (
                    f'{place}: {what} into {UNLABELLED}, but {where}.ignore_index={value}; '
                    f'--cfg-options {where}.ignore_index={UNLABELLED}'
                )
                yield Notice(logging.ERROR, text)


def _evaluators_differ(plan: Plan, head: DecodeHead, split: str) -> Iterator[Notice]:
    left_out = head.ignore_index
    if left_out not in range(UNLABELLED + 1):
        return  # no label map has this label
    for place, metric in label_metrics(plan.cfg, split):
        value = metric.get('ignore_index', UNLABELLED)
        if value == left_out:
            continue
        text = (
            f'{place}.ignore_index={value}, but {head.place}.ignore_index={left_out}: '
            'what training leaves out would count in the evaluation'
        )
        level = logging.ERROR
        if value in range(head.num_classes) and left_out not in range(head.num_classes):
            level = logging.WARNING  # may be meant; other labels are found in the maps
            text = (
                f'{place}.ignore_index={value} is a class that is trained ({head.place}'
                f'.ignore_index={left_out}): its own IoU is 0 and lowers the mean'
            )
        yield Notice(level, f'{text}; --cfg-options {place}.ignore_index={left_out}')
    for place, metric in label_metrics(plan.cfg, split):
        said = metric.get('reduce_zero_label')
        for source in plan.sources if said is not None else []:
            own = getattr(source.dataset, 'reduce_zero_label', said)
            if any(p.startswith(split) for p in source.places) and own != said:
                text = (
                    f'{place}.reduce_zero_label={said} has no effect: the data set decides, and '
                    f'{source.places[0]}.reduce_zero_label={own}'
                )
                yield Notice(logging.ERROR, text)


def _filling_differs(plan: Plan, head: DecodeHead) -> Iterator[Notice]:
    """Whether padded pixels of training label maps are left out by the losses."""
    processor = data_preprocessor(plan)
    if processor is not None:
        sure = any(is_padded(processor, pipeline) for _, pipeline in train_pipelines(plan))
        place = 'model.data_preprocessor.seg_pad_val'
        yield from _fill_problem(
            plan, head, place, processor.get('seg_pad_val', UNLABELLED), 'seg_pad_val' in processor,
            sure,
        )  # fmt: skip
    for where, pipeline in train_pipelines(plan):
        loaded = False
        for i, step in enumerate(pipeline):
            name = type_name(step)
            loaded = loaded or 'Annotation' in name
            if loaded and name in _FILLING:
                key, default = _FILLING[name]
                value = step.get(key, default)
                if name == 'Pad':
                    value = value.get('seg', default) if isinstance(value, Mapping) else default
                    key = 'pad_val.seg'
                sure = name != 'Pad' and name != 'BioMedical3DPad'
                place = f'{where}.{i}.{key}'
                if value is not None:
                    yield from _fill_problem(plan, head, place, value, key in step, sure)
            elif name == 'RandomCrop' and step.get('cat_max_ratio', 1.0) < 1:
                value = step.get('ignore_index', UNLABELLED)
                if value != head.ignore_index:
                    text = (
                        f'{where}.{i}.ignore_index={value}, but {head.place}.ignore_index='
                        f'{head.ignore_index}: cat_max_ratio counts unlabelled pixels as a class; '
                        f'--cfg-options {where}.{i}.ignore_index={head.ignore_index}'
                    )
                    yield Notice(logging.WARNING, text)


def _fill_problem(
    plan: Plan, head: DecodeHead, place: str, value: int, said: bool, sure: bool
) -> Iterator[Notice]:
    if value == head.ignore_index:
        return
    option = f'--cfg-options {place}={head.ignore_index}'
    if value in range(head.num_classes):
        if said:
            text = (
                f'{place}={value} trains padding as class {value}, while {head.place}.ignore_index='
                f'{head.ignore_index} is left out; {option}'
            )
            yield Notice(logging.WARNING, text)
        return
    text = (
        f'{place}={value}, but {head.place}.ignore_index={head.ignore_index} and there are '
        f'{head.num_classes} classes: padded pixels stop the loss ("Target {value} is out of '
        f'bounds"); {option}'
    )
    yield Notice(logging.ERROR if sure else logging.WARNING, text)
