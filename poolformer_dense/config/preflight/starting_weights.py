"""The checkpoints that a run starts from."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from backbones.checkpoints import CheckpointError, check_source, is_url
from backbones.weights import RELEASED

from ...errors import first_process
from ..datasets import is_local
from ..walk import nodes_of_type
from .plan import Notice, Plan


def check_checkpoints(plan: Plan) -> Iterator[Notice]:
    """Whether each checkpoint that the run loads can be read."""
    # Where another process lacks it, the first one sends it.
    weights = [plan.cfg.get('load_from')] if first_process() else []
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
