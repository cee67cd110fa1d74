"""Whether this machine computes in the precision that a training asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from .plan import Notice, Plan


def check_precision(plan: Plan) -> Iterator[Notice]:
    """Whether mixed precision is possible here."""
    wrapper = plan.cfg.get('optim_wrapper')
    if 'train' in plan.splits and (fault := mixed_precision_fault(wrapper)):
        yield Notice(logging.ERROR, fault)


def mixed_precision_fault(optim_wrapper: Any) -> str | None:
    """Return why a wrapper's mixed precision is not possible on this device, in one line."""
    if get_device() != 'cpu' or not isinstance(optim_wrapper, Mapping):
        return None
    kind = optim_wrapper.get('type', 'OptimWrapper')
    kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
    if not isinstance(kind, type) or not issubclass(kind, AmpOptimWrapper):
        return None
    if kind is not AmpOptimWrapper:
        return (
            f"optim_wrapper.type={kind.__name__}: it needs a GPU, as mmengine's AmpOptimWrapper "
            'does; of that one there is a CPU version: take type=AmpOptimWrapper'
        )
    dtype = str(optim_wrapper.get('dtype') or 'bfloat16').removeprefix('torch.')
    if dtype != 'bfloat16':
        return (
            f'optim_wrapper.dtype={dtype}: on a CPU mixed precision is in bfloat16; set it to '
            'bfloat16 or leave it out'
        )
    return None
