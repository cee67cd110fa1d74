"""The norm over (C, H, W) of each sample, with one group: statistics, forward, backward."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...maps import Statistics, empty_map, wide
from .common import (
    PIECES,
    kernel,
    launch,
    per_channel,
    per_sample,
    per_sample_statistics,
    place,
    tile,
    tiling,
)

# Elements that a program holds in registers while it computes their mean, then their spread.
MOMENTS = 8192


class Pieces(NamedTuple):
    """Count, mean and sum of squared deviations of each piece of a sample, (B, PIECES, 3)."""

    moments: Tensor | None
    pieces: int
    EPS: float
    PIECES: int


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    statistics = empty_statistics(x)
    return normalize(x, statistics, weight, bias, x.dtype, moments(x, eps)), statistics


def norm_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    residual: Tensor | None = None,
    unit: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels` says.

    ``residual`` (B, C, H, W) is added to the gradient of x. All gradients are divided by ``unit``.
    """
    batch, dim, height, width = x.shape
    mean, out, pixels = statistics.mean, empty_map(x), height * width
    cut = tiling(batch, pixels, dim, elements=2048, steps=8)
    partial = cut.partials(mean, kinds=2)
    arguments = (grad, x, *statistics)
    launch(_gradient_sums, cut.programs, *arguments, partial, batch, pixels, dim, **cut.constants)
    # (2, B, C): of grad, and of grad times the normalised x.
    sums = partial.view(2, batch, cut.strips, dim).sum(2)
    weight_grad, bias_grad = (weight.new_empty(dim) for _ in range(2))
    cut = tiling(batch, pixels, dim)
    launch(
        _input_gradient, cut.programs, *arguments, weight, sums, residual, unit, out, weight_grad,
        bias_grad, batch, pixels, dim, DIM=triton.next_power_of_2(dim), **cut.constants,
    )  # fmt: skip
    return out, weight_grad, bias_grad


def moments(x: Tensor, eps: float) -> Pieces:
    """The moments of pieces of each sample, which the next kernel puts together.

    Each program takes the mean of some elements first and their spread about it next.
    """
    batch, dim, height, width = x.shape
    splits = triton.cdiv(dim * height * width, MOMENTS)
    pieces = torch.sym_min(PIECES, splits)
    # Not only as many as there are: torch.compile would compile anew where that is one.
    found = x.new_empty((batch, PIECES, 3), dtype=torch.float64)
    launch(
        _moments, batch * pieces, x, found, height * width, dim, pieces,
        triton.cdiv(splits, pieces), MOMENTS=MOMENTS, PIECES=PIECES,
    )  # fmt: skip
    return Pieces(found, pieces, eps, PIECES)


def empty_statistics(x: Tensor) -> Statistics:
    """Statistics that the next kernel writes."""
    return Statistics(*(x.new_empty(x.shape[0], dtype=wide(x.dtype)) for _ in range(2)))


def normalize(
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
    found: Pieces | None = None,
) -> Tensor:
    """The normalised map in another dtype; the mean is subtracted before rounding to it.

    Args:
        x: (B, C, H, W).
        statistics: Of x; written where the moments are given.
        weight: (C,).
        bias: (C,) or None.
        dtype: Of the result.
        found: The moments of x, if the statistics aren't known yet.
    """
    batch, dim, height, width = x.shape
    out, cut = empty_map(x, dtype), tiling(batch, height * width, dim, steps=4)
    found = found or Pieces(None, 0, 0.0, PIECES)
    launch(
        _normalize, cut.programs, x, found.moments, *statistics, weight, bias, out, height * width,
        dim, found.pieces, EPS=found.EPS, PIECES=found.PIECES, **cut.constants,
    )  # fmt: skip
    return out


@kernel
def _moments(x, moments, pixels, dim, pieces, steps, MOMENTS: tl.constexpr, PIECES: tl.constexpr):
    sample, piece = tl.program_id(0) // pieces, tl.program_id(0) % pieces
    numel = tl.cast(pixels, tl.int64) * dim
    x += sample.to(tl.int64) * numel
    index = tl.arange(0, MOMENTS)
    wide = tl.float64 if x.dtype.element_ty == tl.float64 else tl.float32
    total = tl.zeros((), tl.float64)
    mean = tl.zeros((), tl.float64)
    spread = tl.zeros((), tl.float64)
    for step in range(steps):
        start = (piece * steps + step).to(tl.int64) * MOMENTS
        count = tl.maximum(tl.minimum(numel - start, MOMENTS), 0).to(tl.int32)
        some = tl.maximum(count, 1)
        values = tl.load(x + start + index, mask=index < count, other=0).to(wide)
        middle = tl.sum(values) / some
        away = tl.where(index < count, values - middle, 0)
        # The mean was rounded: what it misses by belongs neither to the mean nor to the spread.
        missed = tl.sum(away) / some
        further = middle.to(tl.float64) + missed.to(tl.float64) - mean
        share = count.to(tl.float64) / tl.maximum(total + count, 1)
        spread += (tl.sum(away * away) - missed * missed * count).to(tl.float64)
        spread += further * further * total * share
        mean += further * share
        total += count
    moments += (sample * PIECES + piece) * 3
    tl.store(moments, total)
    tl.store(moments + 1, mean)
    tl.store(moments + 2, spread)


@kernel
def _normalize(
    x, moments, mean, rstd, weight, bias, out, pixels, dim, pieces, EPS: tl.constexpr,
    PIECES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, start, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    middle, slope = per_sample_statistics(
        moments, mean, rstd, sample, strip == 0, pieces, EPS, PIECES
    )
    gain = slope * per_channel(weight, channels, dim, 1, wide)
    shift = per_channel(bias, channels, dim, 0, wide)
    for step in range(STEPS):
        where, mask = tile(sample, start + step * PIXELS, channels, pixels, dim, PIXELS)
        centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
        tl.store(out + where, centred * gain[None, :] + shift[None, :], mask=mask)


@kernel
def _gradient_sums(
    grad, x, mean, rstd, partial, batch, pixels, dim,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    middle = per_sample(mean, sample, wide)
    plain = tl.zeros((PIXELS, CHANNELS), wide)
    product = tl.zeros((PIXELS, CHANNELS), wide)
    for step in range(STEPS):
        where, mask = tile(sample, first + step * PIXELS, channels, pixels, dim, PIXELS)
        g = tl.load(grad + where, mask=mask, other=0).to(wide)
        plain += g
        # Where the mask is off g is 0.
        product += g * (tl.load(x + where, mask=mask, other=0).to(wide) - middle)
    strips = tl.cdiv(pixels, PIXELS * STEPS)
    partial += (sample * strips + strip) * dim + channels
    mask = channels < dim
    tl.store(partial, tl.sum(plain, axis=0), mask=mask)
    slope = per_sample(rstd, sample, wide)
    tl.store(partial + batch * strips * dim, tl.sum(product, axis=0) * slope, mask=mask)


@kernel
def _input_gradient(
    grad, x, mean, rstd, weight, sums, residual, unit, out, weight_grad, bias_grad, batch, pixels,
    dim, DIM: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    slope = per_sample(rstd, sample, wide)
    share = 1 / per_sample(unit, 0, wide)
    # What the statistics pass on: means over the sample.
    all_channels, others = tl.arange(0, DIM), sums + batch * dim
    weights = per_channel(weight, all_channels, dim, 1, wide)
    numel = dim * tl.cast(pixels, wide)
    plain = tl.sum(per_channel(sums + sample * dim, all_channels, dim, 0, wide) * weights) / numel
    slant = tl.sum(per_channel(others + sample * dim, all_channels, dim, 0, wide) * weights) / numel
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    normed = tl.load(x + where, mask=mask, other=0).to(wide) - per_sample(mean, sample, wide)
    normed *= slope
    inner = tl.load(grad + where, mask=mask, other=0).to(wide)
    inner *= per_channel(weight, channels, dim, 1, wide)[None, :]
    inner = (inner - (plain + normed * slant)) * (slope * share)
    if residual is not None:
        inner += tl.load(residual + where, mask=mask, other=0).to(wide)
    tl.store(out + where, inner, mask=mask)
    # The first programs sum over the batch.
    chosen = (sample == 0) & (strip == 0)
    weight_total = tl.zeros((CHANNELS,), wide)
    bias_total = tl.zeros((CHANNELS,), wide)
    for other in range(tl.where(chosen, batch, 0)):
        weight_total += per_channel(others + other * dim, channels, dim, 0, wide)
        bias_total += per_channel(sums + other * dim, channels, dim, 0, wide)
    mask = (channels < dim) & chosen
    tl.store(weight_grad + channels, weight_total * share, mask=mask)
    tl.store(bias_grad + channels, bias_total * share, mask=mask)
