"""Checks that cost seconds and come before the model: packages, data, classes, checkpoints.

Each check is a function in `CHECKS` that yields what it finds. Training and testing run them all.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS

from backbones import MetaFormer
from backbones.checkpoints import CheckpointError, check_source, is_url
from backbones.weights import RELEASED

from ..data.audit import audit
from ..data.categories import category_problem, read_categories
from ..data.faults import first_names, is_error, short_name
from ..data.source import Source
from ..errors import UserError, first_process
from .datasets import is_local, missing_data, named_sources
from .walk import evaluators_of, nodes_of_type


@dataclass(frozen=True)
class Plan:
    """What a run is about to use.

    Attributes:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test the run uses.
        unsafe_load: Leave checkpoints alone: to look into them would run the code they hold.
    """

    cfg: Config
    splits: Sequence[str]
    unsafe_load: bool = False

    @cached_property
    def sources(self) -> list[Source]:
        """The data sets of the splits; a UserError if their files are not there."""
        return named_sources(self.cfg, self.splits)[0]


class Notice(NamedTuple):
    """What a check has to say: an error stops the run, anything less is a line of the log."""

    level: int  # of the standard library's logging
    text: str


def check_run(cfg: Config, splits: Sequence[str], unsafe_load: bool = False) -> None:
    """Check what a run needs; see `Plan` for the arguments.

    Raises:
        UserError: Data is missing or has errors that show without opening every image, an
            annotation file's categories or the model's ``num_classes`` disagree with the classes,
            an argument of the backbone is wrong, a checkpoint can't be read, or a logger's
            package is not installed.
    """
    plan = Plan(cfg, splits, unsafe_load)
    for check in CHECKS:
        for finding in check(plan):
            if finding.level >= logging.ERROR:
                raise UserError(finding.text)
            print_log(finding.text, 'current', finding.level)


# What the visualization backends import when they first write, and what pip calls it.
_LOGGERS = {
    'TensorboardVisBackend': ('tensorboard', "'tensorboard>=2.16,<2.22'"),
    'WandbVisBackend': ('wandb', 'wandb'),
    'MLflowVisBackend': ('mlflow', 'mlflow'),
}


def _check_loggers(plan: Plan) -> Iterator[Notice]:
    for kind, (module, package) in _LOGGERS.items():
        for place, _ in nodes_of_type(plan.cfg.get('visualizer'), kind, 'visualizer'):
            if importlib.util.find_spec(module) is None:
                text = (
                    f'{place} ({kind}): {module} is not installed: pip install {package}, or leave '
                    'it out of the list'
                )
                yield Notice(logging.ERROR, text)


def _check_backbone(plan: Plan) -> Iterator[Notice]:
    """Build a backbone of ours without memory, so that a wrong argument is one line."""
    backbone = dict(plan.cfg.model.get('backbone') or {})
    name = backbone.pop('type', None)
    backbone.pop('_scope_', None)
    target = MODELS.get(name) if isinstance(name, str) else None
    if isinstance(target, type) and issubclass(target, MetaFormer):
        try:
            with torch.device('meta'):
                target(**backbone)
        except (TypeError, ValueError) as error:
            yield Notice(logging.ERROR, f'model.backbone ({name}): {error}')


def _check_classes(plan: Plan) -> Iterator[Notice]:
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


def _check_evaluators(plan: Plan) -> Iterator[Notice]:
    for split in plan.splits:
        for place, evaluator in evaluators_of(plan.cfg, split):
            path = evaluator.get('ann_file')
            if is_local(path) and (
                problem := missing_data(plan.cfg, Path(path), f'{place}.ann_file')
            ):
                yield Notice(logging.ERROR, problem)


def _check_checkpoints(plan: Plan) -> Iterator[Notice]:
    weights = [plan.cfg.get('load_from')]
    if 'train' in plan.splits:
        weights += [
            node.get('checkpoint') for _, node in nodes_of_type(plan.cfg.model, 'Pretrained')
        ]
    for source in filter(None, [] if plan.unsafe_load else weights):
        if is_url(source) or source in RELEASED:
            # Several processes don't know of each other yet: each would download for itself.
            checkable = plan.cfg.get('launcher', 'none') == 'none'
        else:
            checkable = is_local(source)
        if checkable:
            try:
                check_source(source)
            except CheckpointError as error:
                yield Notice(logging.ERROR, str(error))


def _check_contents(plan: Plan) -> Iterator[Notice]:
    """What an audit finds without opening images; it reads annotation files whole."""
    tool = f'tools/verify_data.py {plan.cfg.filename}'
    # One process is enough.
    for result in audit(plan.sources, quick=True)[0] if first_process() else []:
        errors = [found for found in result.faults if is_error(found)]
        if errors:
            kinds: dict[str, str] = {}
            for found in errors:
                kinds.setdefault(found.kind, f'{found.kind}: {found}')
            text = (
                f'{result.path} ({short_name(result.source.places)}) has errors: {len(errors)}, '
                f'first {"; ".join(list(kinds.values())[:3])}. For the whole table and a cleaned '
                f'file, run {tool}'
            )
            yield Notice(logging.ERROR, text)
        elif result.faults:
            counts = Counter(found.kind for found in result.faults)
            listed = ', '.join(f'{count} x {kind}' for kind, count in counts.items())
            text = f'{result.path}: warnings: {listed}. For the table: {tool}'
            yield Notice(logging.WARNING, text)


# The quickest first: seconds for the contents of COCO's annotation files.
CHECKS: Sequence[Callable[[Plan], Iterator[Notice]]] = (
    _check_loggers,
    _check_backbone,
    _check_classes,
    _check_evaluators,
    _check_checkpoints,
    _check_contents,
)
