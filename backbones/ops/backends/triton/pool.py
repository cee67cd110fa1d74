"""Pooling, the norm before it and the sum after it, as one variance and one stencil.

A program goes down some rows of a strip of the map. For each row it loads the pixels and their left
and right neighbours; the sums of the last three rows stay in registers, so that memory is read
once, but for the strip's rim, and the caches three times instead of nine.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...maps import Statistics, empty_map
from ...pool_mix import PoolMixGradients, PoolMixInputs
from .common import (
    channel_block,
    kernel,
    launch,
    per_channel,
    per_sample,
    per_sample_statistics,
)
from .norm import empty_statistics, moments

# Elements of a program in each row, and programs that fill a large GPU.
ROW = 1024
PROGRAMS = 1024


def pool_mix_forward(inputs: PoolMixInputs, eps: float) -> tuple[Tensor, Statistics]:
    """As `Kernels` says. P sees x minus its mean, so a large mean costs no digits."""
    x, weight, _, scale, drop = inputs
    statistics, out, found = empty_statistics(x), empty_map(x), moments(x, eps)
    programs, _, rows, constants = _strips(x)
    launch(
        _mix, programs, x, weight, scale, drop, found.moments, *statistics, out, *x.shape[1:], rows,
        found.pieces, EPS=eps, PIECES=found.PIECES, **constants,
    )  # fmt: skip
    return out, statistics


def pool_mix_backward(
    grad: Tensor, inputs: PoolMixInputs, statistics: Statistics
) -> PoolMixGradients:
    """As `Kernels` says.

    The first pass reduces the gradient of k, the second computes the adjoint again.
    """
    x, weight, bias, scale, drop = inputs
    batch, dim, *_ = x.shape
    out, (programs, strips, rows, constants) = empty_map(x), _strips(x)
    partial = statistics.mean.new_empty(batch * strips * dim)
    launch(
        _mixing_gradient, programs, grad, x, statistics.mean, partial, *x.shape[1:], rows,
        **constants,
    )  # fmt: skip
    k_grads = partial.view(batch, strips, dim).sum(1)
    # In the order and the dtypes of the arguments.
    grads = [None if t is None else torch.empty_like(t) for t in (weight, bias, scale)]
    launch(
        _input_gradient, programs, grad, x, weight, scale, drop, *statistics, k_grads, out,
        *grads, batch, *x.shape[1:], rows, DIM=triton.next_power_of_2(dim), **constants,
    )  # fmt: skip
    return PoolMixGradients(out, *grads)


def _strips(x: Tensor) -> tuple[int, int, int, dict[str, int]]:
    """Programs in all and of each channel and sample, rows of each, and compile-time arguments."""
    batch, dim, height, width = x.shape
    channels = channel_block(dim)
    columns = max(1, ROW // channels)
    across, others = triton.cdiv(width, columns), batch * triton.cdiv(dim, channels)
    # Without a branch, for whose sides torch.compile would compile anew.
    rows = torch.sym_max(4, torch.sym_min(16, others * across * height // PROGRAMS))
    strips = triton.cdiv(height, rows) * across
    return others * strips, strips, rows, dict(COLUMNS=columns, CHANNELS=channels)


@triton.jit
def _place(dim, height, width, rows, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr):
    """This program's sample, strip, first row, columns (COLUMNS, 1) and channels (1, CHANNELS)."""
    blocks = tl.cdiv(dim, CHANNELS)
    across = tl.cdiv(width, COLUMNS)
    strips = tl.cdiv(height, rows) * across
    program = tl.program_id(0)
    channels = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    strip = program // blocks % strips
    columns = strip % across * COLUMNS + tl.arange(0, COLUMNS)
    sample = program // blocks // strips
    return sample, strip, strip // across * rows, columns[:, None], channels[None, :]


@triton.jit
def _where(sample, row, columns, channels, dim, height, width):
    """Offsets of one row of the strip, and which of them exist."""
    # Only the start needs 64 bits.
    start = (sample.to(tl.int64) * height + row) * width * dim
    inside = (row >= 0) & (row < height) & (columns < width)
    return start + (columns * dim + channels), inside & (channels < dim)


@triton.jit
def _share(index, size, wide: tl.constexpr):
    """One over how many of index - 1, index and index + 1 exist."""
    return 1 / (1 + (index > 0).to(wide) + (index + 1 < size).to(wide))


@triton.jit
def _row_sum(x, middle, sample, row, columns, channels, dim, height, width):
    """x, and the sum of x - mean over the pixel, its left and its right neighbour."""
    where, mask = _where(sample, row, columns, channels, dim, height, width)
    has_left, has_right = mask & (columns > 0), mask & (columns + 1 < width)
    here = tl.load(x + where, mask=mask, other=0).to(middle.dtype)
    left = tl.load(x + where - dim, mask=has_left, other=0).to(middle.dtype)
    right = tl.load(x + where + dim, mask=has_right, other=0).to(middle.dtype)
    total = tl.where(has_left, left - middle, 0) + tl.where(has_right, right - middle, 0)
    return here, total + tl.where(mask, here - middle, 0)


@triton.jit
def _adjoint_row(grad, sample, row, columns, channels, dim, height, width, wide: tl.constexpr):
    """The gradient, and what the pixel gets of this row's: its own, left and right shares."""
    where, mask = _where(sample, row, columns, channels, dim, height, width)
    has_left, has_right = mask & (columns > 0), mask & (columns + 1 < width)
    here = tl.load(grad + where, mask=mask, other=0).to(wide)
    left = tl.load(grad + where - dim, mask=has_left, other=0).to(wide)
    right = tl.load(grad + where + dim, mask=has_right, other=0).to(wide)
    total = left * _share(columns - 1, width, wide) + right * _share(columns + 1, width, wide)
    return here, (total + here * _share(columns, width, wide)) * _share(row, height, wide)


@kernel
def _mix(
    x, weight, scale, drop, moments, mean, rstd, out, dim, height, width, rows, pieces,
    EPS: tl.constexpr, PIECES: tl.constexpr, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, first, columns, channels = _place(dim, height, width, rows, COLUMNS, CHANNELS)
    middle, slope = per_sample_statistics(
        moments, mean, rstd, sample, strip == 0, pieces, EPS, PIECES
    )
    k = per_channel(weight, channels, dim, 1, wide) * per_channel(scale, channels, dim, 1, wide)
    k *= slope * per_sample(drop, sample, wide)
    across = _share(columns, width, wide)
    _, above = _row_sum(x, middle, sample, first - 1, columns, channels, dim, height, width)
    here, level = _row_sum(x, middle, sample, first, columns, channels, dim, height, width)
    for step in range(rows):
        row = first + step
        following, below = _row_sum(
            x, middle, sample, row + 1, columns, channels, dim, height, width
        )
        pooled = (above + level + below) * (_share(row, height, wide) * across)
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        tl.store(out + where, here + k * (middle - here + pooled), mask=mask)
        above, level, here = level, below, following


@kernel
def _mixing_gradient(
    grad, x, mean, partial, dim, height, width, rows, COLUMNS: tl.constexpr, CHANNELS: tl.constexpr
):
    wide = mean.dtype.element_ty
    sample, strip, first, columns, channels = _place(dim, height, width, rows, COLUMNS, CHANNELS)
    middle = per_sample(mean, sample, wide)
    total = tl.zeros((COLUMNS, CHANNELS), wide)
    _, above = _adjoint_row(grad, sample, first - 1, columns, channels, dim, height, width, wide)
    here, level = _adjoint_row(grad, sample, first, columns, channels, dim, height, width, wide)
    for step in range(rows):
        row = first + step
        following, below = _adjoint_row(
            grad, sample, row + 1, columns, channels, dim, height, width, wide
        )
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
        total += tl.where(mask, (above + level + below - here) * centred, 0)
        above, level, here = level, below, following
    strips = tl.cdiv(height, rows) * tl.cdiv(width, COLUMNS)
    where = (sample * strips + strip) * dim + channels
    tl.store(partial + where, tl.sum(total, axis=0, keep_dims=True), mask=channels < dim)


@kernel
def _input_gradient(
    grad, x, weight, scale, drop, mean, rstd, k_grads, out, weight_grad, bias_grad, scale_grad,
    batch, dim, height, width, rows, DIM: tl.constexpr, COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, first, columns, channels = _place(dim, height, width, rows, COLUMNS, CHANNELS)
    middle = per_sample(mean, sample, wide)
    slope = per_sample(rstd, sample, wide)
    factor = slope * per_sample(drop, sample, wide)
    # What the standard deviation passes on.
    everywhere = tl.arange(0, DIM)
    through = per_channel(weight, everywhere, dim, 1, wide)
    through *= per_channel(scale, everywhere, dim, 1, wide)
    through *= per_channel(k_grads + sample * dim, everywhere, dim, 0, wide)
    numel = tl.cast(height, wide) * width * dim
    spread = -tl.sum(through) * factor * slope * slope / numel
    gain = per_channel(weight, channels, dim, 1, wide)
    scales = per_channel(scale, channels, dim, 1, wide)
    k = gain * scales * factor
    _, above = _adjoint_row(grad, sample, first - 1, columns, channels, dim, height, width, wide)
    here, level = _adjoint_row(grad, sample, first, columns, channels, dim, height, width, wide)
    for step in range(rows):
        row = first + step
        following, below = _adjoint_row(
            grad, sample, row + 1, columns, channels, dim, height, width, wide
        )
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
        adjoint = above + level + below - here
        tl.store(out + where, here + k * adjoint + spread * centred, mask=mask)
        above, level, here = level, below, following
    # The first programs sum over the batch.
    chosen = (sample == 0) & (strip == 0)
    total = tl.zeros((1, CHANNELS), wide)
    for other in range(tl.where(chosen, batch, 0)):
        share = per_sample(rstd, other, wide) * per_sample(drop, other, wide)
        total += share * per_channel(k_grads + other * dim, channels, dim, 0, wide)
    mask = (channels < dim) & chosen
    tl.store(weight_grad + channels, total * scales, mask=mask)
    if bias_grad is not None:
        # Zeros rather than None: DDP waits for each parameter's gradient, and AdamW decays only
        # those that have one.
        tl.store(bias_grad + channels, tl.zeros((1, CHANNELS), wide), mask=mask)
    if scale_grad is not None:
        tl.store(scale_grad + channels, total * gain, mask=mask)
