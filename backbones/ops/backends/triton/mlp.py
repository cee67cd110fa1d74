"""The channel MLP with the norm before it and the sum after it.

The matrix products are the vendor's; what is between them takes one pass each. Nothing but the
statistics and, if kept, the hidden tokens before b1 is added outlives forward.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton.language as tl
from torch import Tensor

from ...maps import Statistics, empty_map, tokens
from ...norm_mlp import MLPGradients, MLPInputs
from ..balance import largest_gradient
from .common import kernel, launch, normal_cdf, per_channel, per_sample, place, tile, tiling
from .fused_mlp import add_mlp_branch, fits
from .mlp_weights import cast_weights, finish
from .norm import empty_statistics, moments, norm_backward, normalize
from .products import product, row_gradient, weight_gradient


def norm_mlp_forward(
    inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Statistics, Tensor]:
    """As `Kernels` says; the hidden tokens are those before b1 is added."""
    x = inputs.x
    batch, dim, height, width = x.shape
    statistics, found, out = empty_statistics(x), moments(x, eps), empty_map(x)
    weights = cast_weights(inputs, dtype)
    if fits(dim, dtype):
        rows = batch * height * width if keep else 0
        hidden = x.new_empty((rows, len(inputs.w1)), dtype=dtype)
        add_mlp_branch(inputs, weights, found, statistics, out, hidden if keep else None)
        return out, statistics, hidden
    normed = normalize(x, statistics, inputs.weight, inputs.bias, dtype, found)
    hidden = product(tokens(normed), weights.w1, x)
    active = torch.empty_like(hidden) if keep else hidden
    cut = tiling(1, *hidden.shape)
    launch(
        _gelu,
        cut.programs,
        hidden,
        inputs.b1,
        active,
        statistics.mean,
        *hidden.shape,
        **cut.constants,
    )
    branch = product(active, weights.w2, x)
    del active
    cut = tiling(batch, height * width, dim)
    launch(
        _add_branch, cut.programs, x, branch, inputs.b2, inputs.scale, inputs.drop, statistics.mean,
        out, height * width, dim, **cut.constants,
    )  # fmt: skip
    return out, statistics, hidden if keep else hidden.new_empty(0, len(inputs.w1))


def norm_mlp_backward(
    grad: Tensor, inputs: MLPInputs, statistics: Statistics, hidden: Tensor, dtype: torch.dtype
) -> MLPGradients:
    """As `Kernels` says."""
    x, mean = inputs.x, statistics.mean
    largest = largest_gradient(grad) if dtype == torch.float16 else None
    weights = cast_weights(inputs, dtype, grad, largest)
    branch_grad, b2_sums = _branch_gradient(grad, inputs.drop, weights.factor, mean, dtype)
    if not hidden.shape[0]:
        normed = tokens(normalize(x, statistics, inputs.weight, inputs.bias, dtype))
        hidden = product(normed, weights.w1, x)
        del normed
        active = hidden
    else:
        active = torch.empty_like(hidden)
    hidden_grad = row_gradient(branch_grad, weights.w2, x)  # (T, E)
    b1_sums = _gelu_backward(hidden, inputs.b1, hidden_grad, active, mean)
    w2_grad = weight_gradient(branch_grad, active, x)
    del active, hidden
    normed = tokens(normalize(x, statistics, inputs.weight, inputs.bias, dtype))
    w1_grad = weight_gradient(hidden_grad, normed, x)
    # The memory of what is not needed any more.
    normed_grad = row_gradient(hidden_grad, weights.w1, x, out=normed)
    del hidden_grad, branch_grad, normed
    normed_grad = normed_grad.view(*x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    norm_grads = norm_backward(
        normed_grad, x, statistics, inputs.weight, residual=grad, unit=weights.unit
    )
    weight_grads = finish(inputs, weights, w1_grad, b1_sums, w2_grad, b2_sums)
    return MLPGradients(*norm_grads, *weight_grads)


def _branch_gradient(
    grad: Tensor, drop: Tensor | None, factor: Tensor | None, mean: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradient of the branch as tokens (T, C) in the products' dtype, and its sums (N, C)."""
    batch, dim, height, width = grad.shape
    cut = tiling(batch, height * width, dim, elements=2048, steps=8)
    out, partial = empty_map(grad, dtype), cut.partials(mean, kinds=1)
    launch(
        _drop_and_sum, cut.programs, grad, drop, factor, out, partial, height * width, dim,
        **cut.constants,
    )  # fmt: skip
    return tokens(out), partial.view(-1, dim)


def _gelu_backward(
    hidden: Tensor, b1: Tensor | None, grad: Tensor, active: Tensor, mean: Tensor
) -> Tensor:
    """Write GELU's output to ``active``, its input's gradient to ``grad``; return its sums (N, E).

    Either tensor may be overwritten while read: every element by the program that read it.
    """
    cut = tiling(1, *hidden.shape, elements=2048, steps=8)
    partial = cut.partials(mean, kinds=1)
    launch(
        _gelu_and_gradient, cut.programs, hidden, b1, grad, active, partial, *hidden.shape,
        **cut.constants,
    )  # fmt: skip
    return partial.view(-1, hidden.shape[1])


@kernel
def _gelu(
    hidden, b1, out, mean, pixels, dim,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    h = tl.load(hidden + where, mask=mask, other=0).to(wide)
    h += per_channel(b1, channels, dim, 0, wide)[None, :]
    tl.store(out + where, h * normal_cdf(h), mask=mask)


@kernel
def _gelu_and_gradient(
    hidden, b1, grad, active, partial, pixels, dim,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = partial.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    shift = per_channel(b1, channels, dim, 0, wide)[None, :]
    total = tl.zeros((PIXELS, CHANNELS), wide)
    for step in range(STEPS):
        where, mask = tile(sample, first + step * PIXELS, channels, pixels, dim, PIXELS)
        h = tl.load(hidden + where, mask=mask, other=0).to(wide) + shift
        below = normal_cdf(h)
        density = 0.3989422804014327 * tl.exp(-0.5 * h * h)
        # Where the mask is off the gradient is 0.
        inner = tl.load(grad + where, mask=mask, other=0).to(wide) * (below + h * density)
        total += inner
        tl.store(active + where, h * below, mask=mask)
        tl.store(grad + where, inner, mask=mask)
    tl.store(partial + strip * dim + channels, tl.sum(total, axis=0), mask=channels < dim)


@kernel
def _drop_and_sum(
    grad, drop, factor, out, partial, pixels, dim,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = partial.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    factors = per_channel(factor, channels, dim, 1, wide) * per_sample(drop, sample, wide)
    total = tl.zeros((PIXELS, CHANNELS), wide)
    for step in range(STEPS):
        where, mask = tile(sample, first + step * PIXELS, channels, pixels, dim, PIXELS)
        g = tl.load(grad + where, mask=mask, other=0).to(wide) * factors[None, :]
        total += g
        tl.store(out + where, g, mask=mask)
    partial += (sample * tl.cdiv(pixels, PIXELS * STEPS) + strip) * dim + channels
    tl.store(partial, tl.sum(total, axis=0), mask=channels < dim)


@kernel
def _add_branch(
    x, branch, b2, scale, drop, mean, out, pixels, dim,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    factor = per_channel(scale, channels, dim, 1, wide) * per_sample(drop, sample, wide)
    shift = per_channel(b2, channels, dim, 0, wide)[None, :]
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    y = (tl.load(branch + where, mask=mask, other=0).to(wide) + shift) * factor[None, :]
    tl.store(out + where, tl.load(x + where, mask=mask, other=0).to(wide) + y, mask=mask)
