"""The channel MLP with the norm before it and the sum after it.

The matrix products are the vendor's; what is between them takes one pass each. Nothing but the
statistics and, if kept, the hidden tokens before the activation outlives forward.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from ...maps import Statistics, empty_map, tokens
from ...norm_mlp import MLPGradients, MLPInputs
from .common import launch, normal_cdf, per_channel, per_sample, place, tile, tiling
from .fused_mlp import add_mlp_branch, fits
from .norm import moments, norm_backward, normalize


def norm_mlp_forward(
    inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Statistics, Tensor]:
    """As `Kernels` says; the hidden tokens are those before the activation."""
    x = inputs.x
    batch, dim, height, width = x.shape
    statistics = moments(x, eps)
    out = empty_map(x)
    if fits(dim, dtype):
        rows = batch * height * width if keep else 0
        hidden = x.new_empty((rows, len(inputs.w1)), dtype=dtype)
        w1, w2 = _matrix(inputs.w1, dtype), _matrix(inputs.w2, dtype)
        matrices = inputs._replace(w1=w1, w2=w2)
        add_mlp_branch(matrices, statistics, out, hidden if keep else None)
        return out, statistics, hidden
    hidden = _first_product(inputs, statistics, dtype)
    active = torch.empty_like(hidden) if keep else hidden
    cut = tiling(1, *hidden.shape)
    launch(_gelu, cut.programs, hidden, active, *hidden.shape, **cut.constants)
    branch = F.linear(active, _matrix(inputs.w2, dtype), _to(inputs.b2, dtype))
    del active
    cut = tiling(batch, height * width, dim)
    launch(
        _add_branch, cut.programs, x, branch, inputs.scale, inputs.drop, statistics.mean, out,
        height * width, dim, **cut.constants,
    )  # fmt: skip
    return out, statistics, hidden if keep else hidden.new_empty(0, len(inputs.w1))


def norm_mlp_backward(
    grad: Tensor, inputs: MLPInputs, statistics: Statistics, hidden: Tensor, dtype: torch.dtype
) -> MLPGradients:
    """As `Kernels` says; what is None has a gradient that nobody reads."""
    x, mean = inputs.x, statistics.mean
    branch_grad, b2_grad = _branch_gradient(grad, inputs.drop, mean, dtype)
    active_grad = branch_grad @ _matrix(inputs.scaled_w2, dtype)  # (T, E)
    if len(hidden):
        active = torch.empty_like(hidden)
    else:
        active = hidden = _first_product(inputs, statistics, dtype)
    b1_grad = _gelu_backward(hidden, active_grad, active, mean)
    w2_grad = (branch_grad.t() @ active).to(mean.dtype)
    del active, hidden, branch_grad
    hidden_grad = active_grad
    normed = tokens(normalize(x, statistics, inputs.weight, inputs.bias, dtype))
    w1_grad = (hidden_grad.t() @ normed).view_as(inputs.w1)
    torch.mm(hidden_grad, _matrix(inputs.w1, dtype), out=normed)
    normed_grad = normed.view(*x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    del active_grad, hidden_grad
    norm_grads = norm_backward(normed_grad, x, statistics, inputs.weight, residual=grad)
    return MLPGradients(*norm_grads, w1_grad, b1_grad, w2_grad.view_as(inputs.w2), b2_grad)


def _first_product(inputs: MLPInputs, statistics: Statistics, dtype: torch.dtype) -> Tensor:
    normed = tokens(normalize(inputs.x, statistics, inputs.weight, inputs.bias, dtype))
    return F.linear(normed, _matrix(inputs.w1, dtype), _to(inputs.b1, dtype))


def _branch_gradient(
    grad: Tensor, drop: Tensor | None, mean: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradient of the branch as tokens (T, C) in the products' dtype, and its sum (C,)."""
    batch, dim, height, width = grad.shape
    cut = tiling(batch, height * width, dim, elements=2048, steps=8)
    out, partial = empty_map(grad, dtype), cut.partials(mean, kinds=1)
    launch(
        _drop_and_sum, cut.programs, grad, drop, out, partial, height * width, dim,
        **cut.constants,
    )  # fmt: skip
    return tokens(out), partial.sum((0, 1, 2))


def _gelu_backward(hidden: Tensor, grad: Tensor, active: Tensor, mean: Tensor) -> Tensor:
    """Write GELU's output to ``active`` and its input's gradient to ``grad``; return its sum.

    Either tensor may be overwritten while read: every element by the program that read it.
    """
    cut = tiling(1, len(hidden), hidden.shape[1], elements=2048, steps=8)
    partial = cut.partials(mean, kinds=1)
    launch(
        _gelu_and_gradient, cut.programs, hidden, grad, active, partial, *hidden.shape,
        **cut.constants,
    )  # fmt: skip
    return partial.sum((0, 1, 2))


def _matrix(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight of a 1x1 convolution as a matrix."""
    return weight.flatten(1).to(dtype)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)


@triton.jit
def _wide(x):
    """In float32, or float64 if it is that already."""
    return x if x.dtype == tl.float64 else x.to(tl.float32)


@triton.jit
def _gelu(hidden, out, pixels, dim, PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr):
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    h = _wide(tl.load(hidden + where, mask=mask, other=0))
    tl.store(out + where, h * normal_cdf(h), mask=mask)


@triton.jit
def _gelu_and_gradient(
    hidden, grad, active, partial, pixels, dim,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr,
):  # fmt: skip
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    total = tl.zeros((PIXELS, CHANNELS), partial.dtype.element_ty)
    for step in range(STEPS):
        where, mask = tile(sample, first + step * PIXELS, channels, pixels, dim, PIXELS)
        h = _wide(tl.load(hidden + where, mask=mask, other=0))
        below = normal_cdf(h)
        density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
        inner = _wide(tl.load(grad + where, mask=mask, other=0)) * (below + h * density)
        total += inner
        tl.store(active + where, h * below, mask=mask)
        tl.store(grad + where, inner, mask=mask)
    tl.store(partial + strip * dim + channels, tl.sum(total, axis=0), mask=channels < dim)


@triton.jit
def _drop_and_sum(
    grad, drop, out, partial, pixels, dim, PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr
):
    wide = partial.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    factor = per_sample(drop, sample, wide)
    total = tl.zeros((PIXELS, CHANNELS), wide)
    for step in range(STEPS):
        where, mask = tile(sample, first + step * PIXELS, channels, pixels, dim, PIXELS)
        g = tl.load(grad + where, mask=mask, other=0).to(wide) * factor
        total += g
        tl.store(out + where, g, mask=mask)
    partial += (sample * tl.cdiv(pixels, PIXELS * STEPS) + strip) * dim + channels
    tl.store(partial, tl.sum(total, axis=0), mask=channels < dim)


@triton.jit
def _add_branch(
    x, branch, scale, drop, mean, out, pixels, dim,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    factor = per_channel(scale, channels, dim, 1, wide) * per_sample(drop, sample, wide)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    y = tl.load(branch + where, mask=mask, other=0).to(wide) * factor[None, :]
    tl.store(out + where, tl.load(x + where, mask=mask, other=0).to(wide) + y, mask=mask)
