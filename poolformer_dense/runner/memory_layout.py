"""The layout of maps in memory, from our backbone through the whole model."""

from __future__ import annotations

import sys
from typing import Any, TypeVar

from torch import Tensor, nn

from backbones import MetaFormer

Model = TypeVar('Model', bound=nn.Module)
# Functions of mmcv that take boxes and scores, or are made of torch's operators.
_SAFE = ('nms', 'focal_loss', 'point_sample', 'rel_roi_point')


def keep_layout(model: Model) -> Model:
    """Let the layers behind our backbone compute in its layout, on CPUs channels_last.

    mmcv's operators on CPUs read such maps as if they were contiguous, without a word: RoIAlign
    pools other pixels. So its modules get contiguous maps; and if any part comes from a file that
    has such an operator as a function, the backbone's outputs stay contiguous.

    Args:
        model: A detector or segmentor, changed in place.
    """
    modules = [*model.modules()]
    unsafe = any(_has_operator(type(module)) for module in modules)
    for module in modules:
        if isinstance(module, MetaFormer):
            module.contiguous = unsafe
        elif any(kind.__module__.startswith('mmcv.ops.') for kind in type(module).__mro__):
            module.register_forward_pre_hook(_contiguous, with_kwargs=True)
    return model


def _contiguous(
    module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def dense(x: Any) -> Any:
        return x.contiguous() if isinstance(x, Tensor) else x

    return tuple(map(dense, inputs)), {name: dense(x) for name, x in named.items()}


def _has_operator(kind: type) -> bool:
    """Whether a class, or one that it is made of, could call an operator of mmcv as a function."""
    places = {each.__module__ for each in kind.__mro__}
    ours = (place for place in places if place.split('.')[0] not in ('mmcv', 'mmengine', 'torch'))
    return any(
        _is_operator(name, value)
        for place in ours
        for name, value in vars(sys.modules[place]).items()
    )


def _is_operator(name: str, value: Any) -> bool:
    if isinstance(value, type) or any(safe in name for safe in _SAFE):
        return False
    owner = getattr(value, '__self__', value)  # deform_conv2d is the method of a class
    return callable(value) and str(getattr(owner, '__module__', '')).startswith('mmcv.ops')
