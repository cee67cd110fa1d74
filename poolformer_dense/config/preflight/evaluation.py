"""What evaluators read, against what the data sets read."""

from __future__ import annotations

import filecmp
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmengine.registry import METRICS

from ...data.coco_json import read_json
from ...data.faults import first_names
from ...data.label_order import is_coco_metric, registered_class
from ..datasets import is_local, missing_data
from ..walk import datasets_of, evaluators_of, type_name
from .plan import Notice, Plan


def check_evaluators(plan: Plan) -> Iterator[Notice]:
    """Whether the files that the evaluators read are there, and those of the data sets."""
    for split in plan.splits:
        # Each metric of this one is given the images of one data set.
        each = type_name(plan.cfg.get(f'{split}_evaluator')) == 'MultiDatasetsEvaluator'
        members = _files(plan, split)
        for i, (place, evaluator) in enumerate(evaluators_of(plan.cfg, split)):
            path = evaluator.get('ann_file')
            if is_local(path) and (
                problem := missing_data(plan.cfg, Path(path), f'{place}.ann_file')
            ):
                yield Notice(logging.ERROR, problem)
            elif is_coco_metric(registered_class(evaluator, METRICS)) and members:
                read = members[i : i + 1] if each else members
                if path is None:
                    yield from _without_file(place, read)
                elif is_local(path):
                    yield from _with_file(place, split, path, read)


def _files(plan: Plan, split: str) -> list[tuple[str, str]]:
    """Places and annotation files of a split's data sets; nothing unless all are known."""
    nodes = list(datasets_of(plan.cfg, split))
    files = {
        place: str(source.dataset.ann_file)
        for source in plan.sources
        for place in source.places
        if source.local and Path(source.dataset.ann_file or '').is_file()
    }
    return [(place, files[place]) for place, _ in nodes if place in files] * (
        all(place in files for place, _ in nodes)
    )


def _with_file(
    place: str, split: str, path: str, members: Sequence[tuple[str, str]]
) -> Iterator[Notice]:
    files = {os.path.realpath(file): file for _, file in members}
    if len(files) > 1:
        yield Notice(
            logging.ERROR,
            f'{place}.ann_file is one file, {path}, and the data sets have {len(files)} '
            f'({first_names(list(files.values()))}): images of the others would be missing or '
            f'taken for others of the same id. Give each its own metric, {split}_evaluator=dict('
            "type='MultiDatasetsEvaluator', metrics=[dict(type='CocoMetric', ann_file=...), ...], "
            "dataset_prefixes=['a', ...]), or merge the files into one",
        )
    for where, file in [] if len(files) > 1 else members[:1]:
        if not os.path.samefile(path, file) and not filecmp.cmp(path, file, shallow=False):
            yield Notice(
                logging.ERROR,
                f'{place}.ann_file is {path}, and {where} reads {file}: predictions would be '
                f'compared with other objects; set both to the same file, e.g. --cfg-options '
                f'{place}.ann_file={file}',
            )


def _without_file(place: str, members: Sequence[tuple[str, str]]) -> Iterator[Notice]:
    """The objects come from the data sets, by the ids of their images."""
    seen: dict[Any, str] = {}
    for where, file in members if len(members) > 1 else ():
        try:
            ids = [entry['id'] for entry in read_json(file)['images']]
        except (ValueError, RecursionError, KeyError, TypeError):
            continue  # what is wrong with the file is said where it is checked
        if both := [i for i in ids if i in seen]:
            yield Notice(
                logging.ERROR,
                f'{place} has no ann_file, and {len(both)} image ids, e.g. {both[0]}, are in '
                f'{seen[both[0]]} and in {where}: their objects would be mixed up; give each image '
                'an id of its own',
            )
            return
        seen |= dict.fromkeys(ids, where)
