"""The token mixing of a PoolFormer block: the norm, average pooling less its input, the sum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .maps import Statistics, stream, wide
from .modified_layer_norm import reference_norm
from .operator import Operator
from .selection import kernels, select_backend


class PoolMixInputs(NamedTuple):
    """What `pool_mix` computes with."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None
    drop: Tensor | None

    @property
    def gain(self) -> Tensor:
        """The factor of each channel, (C,), at least in float32."""
        weight = self.weight.to(wide(self.weight.dtype))
        return weight if self.scale is None else weight * self.scale


class PoolMixGradients(NamedTuple):
    """Gradients of `PoolMixInputs`, None where those are None."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor | None


def gain_gradients(inputs: PoolMixInputs, x_grad: Tensor, gain_grad: Tensor) -> PoolMixGradients:
    """Complete the gradients of x and gain."""
    # Zeros rather than None: DDP waits for each parameter's gradient, and AdamW decays only those
    # that have one.
    bias_grad = None if inputs.bias is None else torch.zeros_like(inputs.bias)
    if inputs.scale is None:
        return PoolMixGradients(x_grad, gain_grad, bias_grad, None)
    weight_grad, scale_grad = gain_grad * inputs.scale, gain_grad * inputs.weight
    return PoolMixGradients(x_grad, weight_grad, bias_grad, scale_grad)


def pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    eps: float,
    backend: str = 'auto',
) -> Tensor:
    """Add the pooling branch to its input: equation 2 of arXiv 2111.11418.

    Args:
        x: (B, C, H, W).
        weight: (C,), of the norm.
        bias: (C,), of the norm, or None. The branch does not depend on it: pooling minus the
            input cancels it. Its gradient is zero, not None.
        scale: (C,), layer scale, or None for 1.
        drop: (B,), drop path's factor of each sample, or None for 1.
        eps: Of the norm.
        backend: As in `use_backend`.
    """
    backend = select_backend(backend, x, drop)
    if backend == 'reference':
        return reference_pool_mix(x, weight, bias, scale, drop, eps)
    return _operator(stream(x), weight, bias, scale, drop, eps, backend)


def reference_pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    eps: float,
) -> Tensor:
    """The specification of `pool_mix`."""
    y = reference_norm(x, weight, bias, eps)
    y = F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False) - y
    return x + scaled(y, scale, drop)


def scaled(y: Tensor, scale: Tensor | None, drop: Tensor | None) -> Tensor:
    """A branch times layer scale and drop path's factors."""
    if scale is not None:
        y = y * scale.view(-1, 1, 1)
    if drop is not None:
        # One over the rate to keep has no exact value in bfloat16.
        y = (y * drop.view(-1, 1, 1, 1)).to(y.dtype)
    return y


def _forward(inputs: PoolMixInputs, eps: float, backend: str) -> tuple[Tensor, ...]:
    out, statistics = kernels(backend).pool_mix_forward(inputs, eps)
    return out, *statistics


def _backward(
    grad: Tensor, inputs: PoolMixInputs, kept: Sequence[Tensor], eps: float, backend: str
) -> tuple[Tensor | None, ...]:
    return kernels(backend).pool_mix_backward(grad, inputs, Statistics(*kept))


_operator = Operator('pool_mix', PoolMixInputs, 1, 'float eps, str backend', _forward, _backward)
