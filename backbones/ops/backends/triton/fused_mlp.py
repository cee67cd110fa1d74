"""The whole branch of the channel MLP in one kernel, for maps of few channels.

There the matrix products take less time than moving the hidden activations, which are four times
the map; here they stay on the chip, but for the copy that backward may want. With many channels
the sums no longer fit into a program's registers, and the products take the time anyway.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...maps import Statistics
from ...norm_mlp import MLPInputs
from .common import (
    Tiling,
    kernel,
    launch,
    normal_cdf,
    per_channel,
    per_sample,
    per_sample_statistics,
    place,
    tile,
)
from .mlp_weights import Weights
from .norm import Pieces

# Channels whose sums fit into registers.
MOST_CHANNELS = 128


def fits(dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes maps of so many channels and products of this dtype."""
    return dim <= MOST_CHANNELS and dtype in (torch.bfloat16, torch.float16)


def add_mlp_branch(
    inputs: MLPInputs,
    weights: Weights,
    found: Pieces,
    statistics: Statistics,
    out: Tensor,
    hidden: Tensor | None,
) -> None:
    """Write the operator's map to ``out``, the tokens before b1 is added, (T, E), to ``hidden``.

    The statistics are put together from what was found of x, and written.
    """
    x, weight, bias, _, b1, _, b2, scale, drop = inputs
    batch, dim, height, width = x.shape
    channels = max(16, triton.next_power_of_2(dim))
    # A warp group's matrix unit takes 64 rows. What fits into registers without spills, by ptxas.
    groups = 1 if channels <= 64 else 2
    cut = Tiling((batch, height * width, dim), 64 * groups, channels, STEPS=1)
    launch(
        _branch, cut.programs, x, found.moments, *statistics, weight, bias, weights.w1, b1,
        weights.w2, b2, scale, drop, out, hidden, height * width, dim, len(weights.w1),
        found.pieces, EPS=found.EPS, PIECES=found.PIECES, **cut.constants, HIDDEN=32,
        num_warps=4 * groups, num_stages=2,
    )  # fmt: skip


@kernel
def _branch(
    x, moments, mean, rstd, weight, bias, w1, b1, w2, b2, scale, drop, out, hidden, pixels, dim,
    units, pieces, EPS: tl.constexpr, PIECES: tl.constexpr, PIXELS: tl.constexpr,
    CHANNELS: tl.constexpr, STEPS: tl.constexpr, HIDDEN: tl.constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    narrow = w1.dtype.element_ty
    sample, strip, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    middle, slope = per_sample_statistics(
        moments, mean, rstd, sample, strip == 0, pieces, EPS, PIECES
    )
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    gain = slope * per_channel(weight, channels, dim, 1, wide)
    shift = per_channel(bias, channels, dim, 0, wide)
    centred = tl.load(x + where, mask=mask, other=0).to(wide) - middle
    # Channels that don't exist have weight and shift 0.
    normed = (centred * gain[None, :] + shift[None, :]).to(narrow)
    total = tl.zeros((PIXELS, CHANNELS), wide)
    for start in range(0, units, HIDDEN):
        unit = start + tl.arange(0, HIDDEN)
        inside = (channels[:, None] < dim) & (unit[None, :] < units)
        matrix = tl.load(w1 + unit[None, :] * dim + channels[:, None], mask=inside, other=0)
        h = tl.dot(normed, matrix, out_dtype=wide).to(narrow)
        if hidden is not None:
            to, exists = tile(sample, first, unit, pixels, units, PIXELS)
            tl.store(hidden + to, h, mask=exists)
        h = h.to(wide) + per_channel(b1, unit, units, 0, wide)[None, :]
        inside = (unit[:, None] < units) & (channels[None, :] < dim)
        matrix = tl.load(w2 + channels[None, :] * units + unit[:, None], mask=inside, other=0)
        total = tl.dot((h * normal_cdf(h)).to(narrow), matrix, total, out_dtype=wide)
    total += per_channel(b2, channels, dim, 0, wide)[None, :]
    factor = per_channel(scale, channels, dim, 1, wide) * per_sample(drop, sample, wide)
    values = tl.load(x + where, mask=mask, other=0).to(wide)
    tl.store(out + where, values + total * factor[None, :], mask=mask)
