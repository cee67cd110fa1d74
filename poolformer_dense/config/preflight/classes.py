"""One order of classes: the config's data sets, the annotation files, the heads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from mmengine.registry import METRICS

from ...data.categories import missing_problem, order_problem, read_categories, twice_problem
from ...data.faults import first_names
from ...data.label_order import has_class_order, is_coco_metric, registered_class
from ...data.source import Source
from ...errors import UserError
from ..datasets import unread_dataset
from ..walk import SPLITS, datasets_of, evaluators_of
from .plan import Notice, Plan


def check_classes(plan: Plan) -> Iterator[Notice]:
    """The classes against each other, the heads and, without reading it whole, the annotation file.

    Labels follow ``metainfo.classes`` (`data.label_order`). Where a type of data set or evaluator
    numbers them in its own way, the file must have the same order.
    """
    yield from _other_classes(plan)
    for source in plan.sources:
        for found in source.faults:
            yield Notice(logging.ERROR, found.detail)
        path = Path(source.dataset.ann_file or '')
        if path.suffix != '.json' or not source.local:
            continue
        place, classes = f'{source.places[0]}.ann_file', source.classes
        if not classes:
            if source.dataset.metainfo.get('classes') is not None:
                yield Notice(logging.ERROR, f'{source.places[0]}.metainfo.classes is empty')
            continue
        names = read_categories(path)
        problem = missing_problem(path, names, classes) or twice_problem(path, names, classes)
        if not problem and (kinds := _file_order(plan, source)):
            problem = order_problem(path, names, classes)
            problem = problem and f'{", ".join(kinds)}: {problem}'
        if problem:
            yield Notice(logging.ERROR, f'{place}: {problem}')
        if extra := [name for name in names if name not in classes]:
            text = f'{path}: categories left out by the config: {first_names(extra)}'
            yield Notice(logging.INFO, text)


def _other_classes(plan: Plan) -> Iterator[Notice]:
    """Data sets whose classes differ from those of the first, which is one of training if any is.

    Of a split that is not run only the same names in another order are an error: the checkpoint
    was trained with one of the two.
    """
    first: tuple[str, tuple[str, ...]] | None = None
    for split in SPLITS:
        for place, node in datasets_of(plan.cfg, split):
            try:
                dataset = unread_dataset(place, node, plan.cfg.default_scope)
            except UserError:
                if split in plan.splits:
                    raise
                continue
            if dataset is None or not dataset.metainfo.get('classes'):
                continue
            classes = tuple(dataset.metainfo['classes'])
            if first is None:
                first = place, classes
            elif classes != first[1]:
                same = sorted(classes) == sorted(first[1])
                what = 'the same classes in another order' if same else 'other classes'
                run = split in plan.splits and first[0].split('_')[0] in plan.splits
                yield Notice(
                    logging.ERROR if same or run else logging.WARNING,
                    f'{place} has {what} ({first_names(classes)}) than {first[0]} '
                    f'({first_names(first[1])}): labels would mean different things; give both '
                    'the same metainfo.classes, in the order in which the model is trained',
                )


def _file_order(plan: Plan, source: Source) -> list[str]:
    """The types that would number a data set's labels in the order of its file."""
    kinds = [type(source.dataset)]
    for split in SPLITS if source.evaluated else ():
        if any(place.startswith(f'{split}_') for place in source.places):
            metrics = (
                registered_class(node, METRICS) for _, node in evaluators_of(plan.cfg, split)
            )
            kinds += [kind for kind in metrics if kind and is_coco_metric(kind)]
    return [kind.__name__ for kind in kinds if not has_class_order(kind)]
