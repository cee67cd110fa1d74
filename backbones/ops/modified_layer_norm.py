"""The norm over (C, H, W) of each sample, with one group (arXiv 2111.11418, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from .maps import Statistics, stream
from .operator import Operator
from .selection import kernels, select_backend


class NormInputs(NamedTuple):
    """x (B, C, H, W), weight (C,), and bias (C,) or None for no shift."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None


def modified_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, backend: str = 'auto'
) -> Tensor:
    """Normalise each sample over (C, H, W), then scale and shift each channel.

    Args:
        x: (B, C, H, W).
        weight: (C,).
        bias: (C,), or None for no shift.
        eps: Added to the variance.
        backend: As in `use_backend`.
    """
    backend = select_backend(backend, x, weight, bias)
    if backend == 'reference':
        return reference_norm(x, weight, bias, eps)
    return _operator(stream(x), weight, bias, eps, backend)


def reference_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """The specification of `modified_layer_norm`."""
    return F.group_norm(x, 1, weight, bias, eps)


def _forward(inputs: NormInputs, eps: float, backend: str) -> tuple[Tensor, ...]:
    out, statistics = kernels(backend).norm_forward(*inputs, eps)
    return out, *statistics


def _backward(
    grad: Tensor, inputs: NormInputs, kept: Sequence[Tensor], eps: float, backend: str
) -> tuple[Tensor | None, ...]:
    x, weight, bias = inputs
    grads = kernels(backend).norm_backward(grad, x, Statistics(*kept), weight)
    return grads if bias is not None else grads[:2]


_operator = Operator(
    'modified_layer_norm', NormInputs, 0, 'float eps, str backend', _forward, _backward
)
