"""The channel MLP of a block: the norm, two 1x1 convolutions with GELU between them, the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import Statistics, stream
from .modified_layer_norm import reference_norm
from .operator import Operator
from .pool_mix import scaled
from .selection import kernels, select_backend


class MLPInputs(NamedTuple):
    """What `norm_mlp` computes with, E hidden channels.

    Attributes:
        x: (B, C, H, W).
        weight: (C,), of the norm.
        bias: (C,), of the norm, or None.
        w1: (E, C, 1, 1).
        b1: (E,) or None.
        w2: (C, E, 1, 1).
        b2: (C,) or None.
        scale: (C,), layer scale, or None for 1.
        drop: (B,), drop path's factor of each sample, or None for 1.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    w1: Tensor
    b1: Tensor | None
    w2: Tensor
    b2: Tensor | None
    scale: Tensor | None
    drop: Tensor | None

    @property
    def scaled_w2(self) -> Tensor:
        """``scale * w2``: with it one product serves the gradients of both."""
        return self.w2 if self.scale is None else self.w2 * self.scale.view(-1, 1, 1, 1)


class MLPGradients(NamedTuple):
    """Gradients of `MLPInputs`; those of what is None are of no use."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor
    scale: Tensor | None = None


def finished(inputs: MLPInputs, found: MLPGradients) -> MLPGradients:
    """Complete the gradients of which w2's and b2's are those of ``scale`` times them."""
    if inputs.scale is None:
        return found
    w2_grad, b2_grad = found.w2, found.b2
    scale_grad = torch.linalg.vecdot(w2_grad.flatten(1), inputs.w2.flatten(1).to(w2_grad.dtype))
    if inputs.b2 is not None:
        scale_grad = scale_grad + b2_grad * inputs.b2
    return found._replace(
        w2=w2_grad * inputs.scale.view(-1, 1, 1, 1), b2=b2_grad * inputs.scale, scale=scale_grad
    )


def norm_mlp(
    inputs: MLPInputs, eps: float, recompute: bool = False, backend: str = 'auto'
) -> Tensor:
    """Add the channel MLP's branch to its input: equation 3 of arXiv 2111.11418.

    Args:
        inputs: The map and the weights.
        eps: Of the norm.
        recompute: Compute the hidden activations again in backward instead of keeping them.
        backend: As in `use_backend`.
    """
    x = inputs.x
    dtype = _product_dtype(x)
    backend = select_backend(
        backend, x, inputs.weight, inputs.bias, inputs.scale, inputs.drop, products=dtype
    )
    if backend == 'reference':
        return reference_norm_mlp(inputs, eps)
    keep = not recompute and torch.is_grad_enabled()
    keep = keep and any(t is not None and t.requires_grad for t in inputs[:-1])
    return _operator(stream(x), *inputs[1:], eps, dtype, keep, backend)


def reference_norm_mlp(inputs: MLPInputs, eps: float) -> Tensor:
    """The specification of `norm_mlp`."""
    y = reference_norm(inputs.x, inputs.weight, inputs.bias, eps)
    y = F.conv2d(F.gelu(F.conv2d(y, inputs.w1, inputs.b1)), inputs.w2, inputs.b2)
    return inputs.x + scaled(y, inputs.scale, inputs.drop)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return torch.get_autocast_dtype(device)
    return x.dtype


def _forward(
    inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool, backend: str
) -> tuple[Tensor, ...]:
    out, statistics, hidden = kernels(backend).norm_mlp_forward(inputs, eps, dtype, keep)
    return out, *statistics, hidden


def _backward(
    grad: Tensor,
    inputs: MLPInputs,
    kept: Sequence[Tensor],
    eps: float,
    dtype: torch.dtype,
    keep: bool,
    backend: str,
) -> tuple[Tensor | None, ...]:
    *statistics, hidden = kept
    found = kernels(backend).norm_mlp_backward(grad, inputs, Statistics(*statistics), hidden, dtype)
    return tuple(None if t is None else g for t, g in zip(inputs[:-1], found, strict=True))


def _hidden(inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool, backend: str) -> Tensor:
    batch, _, height, width = inputs.x.shape
    rows = batch * height * width if keep else 0
    return inputs.x.new_empty(rows, len(inputs.w1), dtype=dtype)


_operator = Operator(
    'norm_mlp',
    MLPInputs,
    1,
    'float eps, ScalarType dtype, bool keep, str backend',
    _forward,
    _backward,
    others=[_hidden],
)
