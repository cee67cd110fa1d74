"""Mixed precision on CPUs, and bfloat16 around operators that do not know it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import Tensor, nn


class CpuAmpOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper for CPUs: autocast to bfloat16.

    The loss is not scaled, because bfloat16 has the exponents of float32. Checkpoints are exchanged
    with AmpOptimWrapper in both directions.

    Args:
        loss_scale: Not used, as are the next two.
        dtype: bfloat16; preflight refuses others.
        use_fsdp: Whether the gradients are sharded.
        options: For OptimWrapper.
    """

    def __init__(
        self,
        loss_scale: Any = 'dynamic',
        dtype: str | torch.dtype | None = None,
        use_fsdp: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        with super().optim_context(model), torch.autocast('cpu', torch.bfloat16):
            yield


def for_this_device(wrapper: Any) -> Any:
    """Return the class that takes an optimizer wrapper's place: itself where there is a GPU."""
    return CpuAmpOptimWrapper if wrapper is AmpOptimWrapper and get_device() == 'cpu' else wrapper


def keep_edges_in_float32(model: nn.Module) -> None:
    """Make what heads predict, and what mmcv's operators get, float32 under a bfloat16 autocast.

    mmcv's NMS and RoIAlign do not know bfloat16. Post-processing and losses are then as exact as
    without autocast. Values of any other dtype are left as they are.

    Args:
        model: A detector or segmentor; it gets hooks on heads, layers of heads and RoI extractors.
    """
    for module in model.modules():
        names = [kind.__name__ for kind in type(module).__mro__]
        if any(name.endswith('RoIExtractor') for name in names):
            module.register_forward_pre_hook(lambda _, inputs: _widened(inputs))
        if any(name.endswith('Head') for name in names):
            # mmseg calls forward of its heads, past their hooks, but not that of their last layer.
            layers = [m for m in module.children() if isinstance(m, (nn.Conv2d, nn.Linear))]
            for part in (module, *layers):
                part.register_forward_hook(lambda _, inputs, output: _widened(output))


def _widened(value: Any) -> Any:
    """Return nested lists, tuples and dictionaries with float32 in place of bfloat16."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype is torch.bfloat16 else value
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(v) for v in value)
    if isinstance(value, dict):
        return type(value)((k, _widened(v)) for k, v in value.items())
    return value
