"""Packages that a run would miss only when it first writes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator

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
