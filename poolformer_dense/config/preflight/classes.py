"""One order of classes: the config, the annotation files, the heads."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ...data.categories import category_problem, read_categories
from ...data.faults import first_names
from .plan import Notice, Plan


def check_classes(plan: Plan) -> Iterator[Notice]:
    """The classes against the heads and, without reading it whole, the annotation file."""
    for source in plan.sources:
        for found in source.faults:
            yield Notice(logging.ERROR, found.detail)
        path = Path(source.dataset.ann_file or '')
        if path.suffix != '.json' or not source.classes or not source.local:
            continue
        names = read_categories(path)
        if problem := category_problem(path, names, source.classes):
            yield Notice(logging.ERROR, f'{source.places[0]}.ann_file: {problem}')
        if extra := [name for name in names if name not in source.classes]:
            text = f'{path}: categories left out by the config: {first_names(extra)}'
            yield Notice(logging.INFO, text)
