"""What evaluators read and report."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ..datasets import is_local, missing_data
from ..walk import evaluators_of
from .plan import Notice, Plan


def check_evaluators(plan: Plan) -> Iterator[Notice]:
    """Whether the files that the evaluators read are there."""
    for split in plan.splits:
        for place, evaluator in evaluators_of(plan.cfg, split):
            path = evaluator.get('ann_file')
            if is_local(path) and (
                problem := missing_data(plan.cfg, Path(path), f'{place}.ann_file')
            ):
                yield Notice(logging.ERROR, problem)
