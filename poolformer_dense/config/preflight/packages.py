"""Packages that a run would miss only when it first writes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import Any

from mmengine.registry import METRICS

from ..walk import nodes_of_type
from .plan import Notice, Plan

# What the visualization backends import when they first write, and what pip calls it.
_LOGGERS = {
    'TensorboardVisBackend': ('tensorboard', "'tensorboard>=2.16,<2.22'"),
    'WandbVisBackend': ('wandb', 'wandb'),
    'MLflowVisBackend': ('mlflow', 'mlflow'),
}


def check_loggers(plan: Plan) -> Iterator[Notice]:
    """Whether the packages of the visualization backends are installed."""
    for kind, (module, package) in _LOGGERS.items():
        for place, _ in nodes_of_type(plan.cfg.get('visualizer'), kind, 'visualizer'):
            if importlib.util.find_spec(module) is None:
                text = (
                    f'{place} ({kind}): {module} is not installed: pip install {package}, or leave '
                    'it out of the list'
                )
                yield Notice(logging.ERROR, text)


def check_faster_coco(plan: Plan) -> Iterator[Notice]:
    """Whether FasterCocoMetric is there, and the package that it imports after an evaluation."""
    evaluators = [plan.cfg.get(f'{split}_evaluator') for split in plan.splits]
    if fault := faster_coco_fault(evaluators):
        yield Notice(logging.ERROR, fault)


def faster_coco_fault(evaluator: Any) -> str | None:
    """Return why FasterCocoMetric can't run, in one line, if an evaluator's config names it."""
    if not any(nodes_of_type(evaluator, 'FasterCocoMetric')):
        return None
    with METRICS.switch_scope_and_registry(None) as registry:
        known = 'FasterCocoMetric' in registry
    if not known:
        return (
            "the evaluator FasterCocoMetric is not in the installed mmdet (the maintained line's "
            'has it); take type=CocoMetric'
        )
    if importlib.util.find_spec('faster_coco_eval') is None:
        return (
            'the evaluator FasterCocoMetric needs faster-coco-eval: '
            "pip install 'faster-coco-eval>=1.8,<2', or take type=CocoMetric"
        )
    return None
