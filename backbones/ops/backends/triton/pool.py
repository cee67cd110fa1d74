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
from triton.language import constexpr

from ...maps import Statistics, empty_map
from .common import channel_block, launch, per_channel, per_sample
from .norm import moments

# Elements of a program in each row, and programs that fill a large GPU.
ROW = 1024
PROGRAMS = 1024


def pool_mix_forward(
    x: Tensor, gain: Tensor, drop: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    """As `Kernels` says. P sees x minus its mean, so a large mean costs no digits."""
    statistics = moments(x, eps)
    out = empty_map(x)
    programs, _, constants = _strips(x)
    launch(_mix, programs, x, gain, drop, *statistics, out, *x.shape[1:], **constants)
    return out, statistics


def pool_mix_backward(
    grad: Tensor, x: Tensor, gain: Tensor, drop: Tensor | None, statistics: Statistics
) -> tuple[Tensor, Tensor]:
    """As `Kernels` says.

    The first pass reduces the gradient of k, the second computes the adjoint again.
    """
    batch, dim, *_ = x.shape
    mean, rstd = statistics
    out = empty_map(x)
    programs, strips, constants = _strips(x)
    partial = mean.new_empty((batch, strips, dim))
    launch(_mixing_gradient, programs, grad, x, mean, partial, *x.shape[1:], **constants)
    per_map = rstd if drop is None else rstd * drop
    gain_grads = partial.sum(1) * per_map[:, None]  # (B, C)
    through_std = torch.mv(gain_grads, gain) * rstd.square() / -x[0].numel()
    launch(
        _input_gradient, programs, grad, x, gain, drop, mean, rstd, through_std, out, *x.shape[1:],
        **constants,
    )  # fmt: skip
    return out, gain_grads.sum(0)


def _strips(x: Tensor) -> tuple[int, int, dict[str, int]]:
    """Programs in all and of each channel and sample, and their compile-time arguments."""
    batch, dim, height, width = x.shape
    channels, rows = channel_block(dim), 16
    columns = max(1, min(ROW // channels, triton.next_power_of_2(width)))

    def strips() -> int:
        return int(triton.cdiv(height, rows) * triton.cdiv(width, columns))

    others = batch * triton.cdiv(dim, channels)
    while rows > 4 and others * strips() < PROGRAMS:
        rows //= 2
    return others * strips(), strips(), dict(ROWS=rows, COLUMNS=columns, CHANNELS=channels)


@triton.jit
def _place(dim, height, width, ROWS: constexpr, COLUMNS: constexpr, CHANNELS: constexpr):
    """This program's sample, strip, first row, columns (COLUMNS, 1) and channels (1, CHANNELS)."""
    blocks = tl.cdiv(dim, CHANNELS)
    across = tl.cdiv(width, COLUMNS)
    strips = tl.cdiv(height, ROWS) * across
    program = tl.program_id(0)
    channels = program % blocks * CHANNELS + tl.arange(0, CHANNELS)
    strip = program // blocks % strips
    columns = strip % across * COLUMNS + tl.arange(0, COLUMNS)
    sample = program // blocks // strips
    return sample, strip, strip // across * ROWS, columns[:, None], channels[None, :]


@triton.jit
def _where(sample, row, columns, channels, dim, height, width):
    """Offsets of one row of the strip, and which of them exist."""
    # Only the start needs 64 bits.
    start = (sample.to(tl.int64) * height + row) * width * dim
    inside = (row >= 0) & (row < height) & (columns < width)
    return start + (columns * dim + channels), inside & (channels < dim)


@triton.jit
def _share(index, size, wide: constexpr):
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
def _adjoint_row(grad, sample, row, columns, channels, dim, height, width, wide: constexpr):
    """The gradient, and what the pixel gets of this row's: its own, left and right shares."""
    where, mask = _where(sample, row, columns, channels, dim, height, width)
    has_left, has_right = mask & (columns > 0), mask & (columns + 1 < width)
    here = tl.load(grad + where, mask=mask, other=0).to(wide)
    left = tl.load(grad + where - dim, mask=has_left, other=0).to(wide)
    right = tl.load(grad + where + dim, mask=has_right, other=0).to(wide)
    total = left * _share(columns - 1, width, wide) + right * _share(columns + 1, width, wide)
    return here, (total + here * _share(columns, width, wide)) * _share(row, height, wide)


@triton.jit
def _mix(
    x, gain, drop, mean, rstd, out, dim, height, width,
    ROWS: constexpr, COLUMNS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, columns, channels = _place(dim, height, width, ROWS, COLUMNS, CHANNELS)
    middle = per_sample(mean, sample, wide)
    k = per_channel(gain, channels, dim, 1, wide)
    k *= per_sample(rstd, sample, wide) * per_sample(drop, sample, wide)
    across = _share(columns, width, wide)
    _, above = _row_sum(x, middle, sample, first - 1, columns, channels, dim, height, width)
    here, level = _row_sum(x, middle, sample, first, columns, channels, dim, height, width)
    for step in range(ROWS):
        row = first + step
        following, below = _row_sum(
            x, middle, sample, row + 1, columns, channels, dim, height, width
        )
        pooled = (above + level + below) * (_share(row, height, wide) * across)
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        tl.store(out + where, here + k * (pooled - (here - middle)), mask=mask)
        above, level, here = level, below, following


@triton.jit
def _mixing_gradient(
    grad, x, mean, partial, dim, height, width,
    ROWS: constexpr, COLUMNS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, first, columns, channels = _place(dim, height, width, ROWS, COLUMNS, CHANNELS)
    middle = per_sample(mean, sample, wide)
    total = tl.zeros((COLUMNS, CHANNELS), wide)
    _, above = _adjoint_row(grad, sample, first - 1, columns, channels, dim, height, width, wide)
    here, level = _adjoint_row(grad, sample, first, columns, channels, dim, height, width, wide)
    for step in range(ROWS):
        row = first + step
        following, below = _adjoint_row(
            grad, sample, row + 1, columns, channels, dim, height, width, wide
        )
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
        total += tl.where(mask, (above + level + below - here) * centred, 0)
        above, level, here = level, below, following
    strips = tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS)
    where = (sample * strips + strip) * dim + channels
    tl.store(partial + where, tl.sum(total, axis=0, keep_dims=True), mask=channels < dim)


@triton.jit
def _input_gradient(
    grad, x, gain, drop, mean, rstd, through_std, out, dim, height, width,
    ROWS: constexpr, COLUMNS: constexpr, CHANNELS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, columns, channels = _place(dim, height, width, ROWS, COLUMNS, CHANNELS)
    middle = per_sample(mean, sample, wide)
    spread = per_sample(through_std, sample, wide)
    k = per_channel(gain, channels, dim, 1, wide)
    k *= per_sample(rstd, sample, wide) * per_sample(drop, sample, wide)
    _, above = _adjoint_row(grad, sample, first - 1, columns, channels, dim, height, width, wide)
    here, level = _adjoint_row(grad, sample, first, columns, channels, dim, height, width, wide)
    for step in range(ROWS):
        row = first + step
        following, below = _adjoint_row(
            grad, sample, row + 1, columns, channels, dim, height, width, wide
        )
        where, mask = _where(sample, row, columns, channels, dim, height, width)
        centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
        adjoint = above + level + below - here
        tl.store(out + where, here + k * adjoint + spread * centred, mask=mask)
        above, level, here = level, below, following
