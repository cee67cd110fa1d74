"""The norm over (C, H, W) of each sample, with one group: statistics, forward, backward."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language import constexpr

from ...maps import Statistics, empty_map, wide
from .common import launch, per_channel, per_sample, place, tile, tiling

# Elements that a program holds in registers while it computes their mean, then their spread.
MOMENTS = 8192
# Means that are merged at a time.
SPLITS = 256


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    statistics = moments(x, eps)
    return normalize(x, statistics, weight, bias, x.dtype), statistics


def norm_backward(
    grad: Tensor,
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    residual: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels` says; ``residual`` (B, C, H, W) is added to the gradient of x."""
    batch, dim, height, width = x.shape
    mean, out, pixels = statistics.mean, empty_map(x), height * width
    cut = tiling(batch, pixels, dim, elements=2048, steps=8)
    partial = cut.partials(mean, kinds=2)
    arguments = (grad, x, *statistics, pixels, dim)
    launch(_gradient_sums, cut.programs, *arguments, partial, partial[0].numel(), **cut.constants)
    sums = partial.sum(2)  # (2, B, C): of grad, and of grad times the normalised x
    means = torch.mv(sums.flatten(0, 1), weight.to(mean.dtype)) / (dim * pixels)  # (2 * B,)
    cut = tiling(batch, pixels, dim)
    launch(
        _input_gradient, cut.programs, *arguments, weight, means, residual, out, batch,
        **cut.constants,
    )  # fmt: skip
    return out, sums[1].sum(0), sums[0].sum(0)


def moments(x: Tensor, eps: float) -> Statistics:
    """The statistics of each sample.

    Each program takes the mean of its elements first and their spread about it next; Chan's
    formula (1979) merges them in float64. No large mean and no small variance loses digits.
    """
    batch, numel = x.shape[0], x[0].numel()
    splits = triton.cdiv(numel, MOMENTS)
    partial = x.new_empty((batch, splits, 2), dtype=torch.float64)
    mean, rstd = (x.new_empty(batch, dtype=wide(x.dtype)) for _ in range(2))
    launch(_moments, batch * splits, x, partial, mean, numel, splits, MOMENTS=MOMENTS)
    launch(
        _merge, batch, partial, mean, rstd, numel, splits, EPS=eps, MOMENTS=MOMENTS, SPLITS=SPLITS
    )
    return Statistics(mean, rstd)


def normalize(
    x: Tensor, statistics: Statistics, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The normalised map in another dtype; the mean is subtracted before rounding to it."""
    batch, dim, height, width = x.shape
    out, cut = empty_map(x, dtype), tiling(batch, height * width, dim)
    launch(
        _normalize, cut.programs, x, *statistics, weight, bias, out, height * width, dim,
        **cut.constants,
    )  # fmt: skip
    return out


@triton.jit
def _moments(x, partial, mean, numel, splits, MOMENTS: constexpr):
    wide = mean.dtype.element_ty
    program = tl.program_id(0)
    start = (program % splits).to(tl.int64) * MOMENTS
    count = tl.minimum(numel - start, MOMENTS).to(tl.int32)
    index = tl.arange(0, MOMENTS)
    values = tl.load(
        x + (program // splits).to(tl.int64) * numel + start + index, mask=index < count, other=0
    ).to(wide)
    middle = tl.sum(values) / count
    away = tl.where(index < count, values - middle, 0)
    # The mean was rounded: what it misses by belongs neither to the mean nor to the spread.
    missed = tl.sum(away) / count
    tl.store(partial + program * 2, middle.to(tl.float64) + missed.to(tl.float64))
    tl.store(partial + program * 2 + 1, tl.sum(away * away) - missed * missed * count)


@triton.jit
def _merge(
    partial, mean, rstd, numel, splits, EPS: constexpr, MOMENTS: constexpr, SPLITS: constexpr
):
    sample = tl.program_id(0)
    partial += sample * splits * 2
    counts = tl.zeros((SPLITS,), tl.float64)
    totals = tl.zeros((SPLITS,), tl.float64)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        count = _count(split, numel, MOMENTS)
        counts += count
        totals += count * tl.load(partial + split * 2, mask=split < splits, other=0)
    count = tl.sum(counts)
    middle = tl.sum(totals) / count
    spread = tl.zeros((SPLITS,), tl.float64)
    for first in range(0, splits, SPLITS):
        split = first + tl.arange(0, SPLITS)
        mask = split < splits
        away = tl.load(partial + split * 2, mask=mask, other=0) - middle
        spread += _count(split, numel, MOMENTS) * away * away
        spread += tl.load(partial + split * 2 + 1, mask=mask, other=0)
    tl.store(mean + sample, middle)
    tl.store(rstd + sample, 1 / tl.sqrt(tl.sum(spread) / count + EPS))


@triton.jit
def _count(split, numel, MOMENTS: constexpr):
    left = numel - split.to(tl.int64) * MOMENTS
    return tl.maximum(tl.minimum(left, MOMENTS), 0).to(tl.float64)


@triton.jit
def _normalize(
    x, mean, rstd, weight, bias, out, pixels, dim,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    gain = per_sample(rstd, sample, wide) * per_channel(weight, channels, dim, 1, wide)
    shift = per_channel(bias, channels, dim, 0, wide)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    centred = tl.load(x + where, mask=mask, other=0).to(wide) - per_sample(mean, sample, wide)
    tl.store(out + where, centred * gain[None, :] + shift[None, :], mask=mask)


@triton.jit
def _gradient_sums(
    grad, x, mean, rstd, pixels, dim, partial, size,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr,
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
    partial += (sample * tl.cdiv(pixels, PIXELS * STEPS) + strip) * dim + channels
    mask = channels < dim
    tl.store(partial, tl.sum(plain, axis=0), mask=mask)
    tl.store(partial + size, tl.sum(product, axis=0) * per_sample(rstd, sample, wide), mask=mask)


@triton.jit
def _input_gradient(
    grad, x, mean, rstd, pixels, dim, weight, means, residual, out, batch,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    slope = per_sample(rstd, sample, wide)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    normed = tl.load(x + where, mask=mask, other=0).to(wide) - per_sample(mean, sample, wide)
    normed *= slope
    inner = tl.load(grad + where, mask=mask, other=0).to(wide)
    inner *= per_channel(weight, channels, dim, 1, wide)[None, :]
    inner -= tl.load(means + sample) + normed * tl.load(means + batch + sample)
    inner *= slope
    if residual is not None:
        inner += tl.load(residual + where, mask=mask, other=0).to(wide)
    tl.store(out + where, inner, mask=mask)
