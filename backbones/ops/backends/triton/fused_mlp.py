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
from triton.language import constexpr

from ...maps import Statistics
from ...norm_mlp import MLPInputs
from .common import Tiling, launch, normal_cdf, per_channel, per_sample, place, tile

# Channels whose sums fit into registers.
MOST_CHANNELS = 128


def fits(dim: int, dtype: torch.dtype) -> bool:
    """Whether the kernel takes maps of so many channels and products of this dtype."""
    return dim <= MOST_CHANNELS and dtype in (torch.bfloat16, torch.float16)


def add_mlp_branch(
    inputs: MLPInputs, statistics: Statistics, out: Tensor, hidden: Tensor | None
) -> None:
    """Write the operator's map to ``out`` and the tokens before GELU, (T, E), to ``hidden``.

    The weights are matrices in the dtype of the products: w1 (E, C), w2 (C, E).
    """
    x, *weights = inputs
    batch, dim, height, width = x.shape
    channels = max(16, triton.next_power_of_2(dim))
    # A warp group's matrix unit takes 64 rows. What fits into registers without spills, by ptxas.
    groups = 1 if channels <= 64 else 2
    cut = Tiling((batch, height * width, dim), 64 * groups, channels, STEPS=1)
    launch(
        _branch, cut.programs, x, *statistics, *weights, out, hidden, height * width, dim,
        len(inputs.w1), **cut.constants, HIDDEN=32, num_warps=4 * groups, num_stages=2,
    )  # fmt: skip


@triton.jit
def _branch(
    x, mean, rstd, weight, bias, w1, b1, w2, b2, scale, drop, out, hidden, pixels, dim, width,
    PIXELS: constexpr, CHANNELS: constexpr, STEPS: constexpr, HIDDEN: constexpr,
):  # fmt: skip
    wide = mean.dtype.element_ty
    narrow = w1.dtype.element_ty
    sample, _, first, channels = place(pixels, dim, PIXELS, CHANNELS, STEPS)
    where, mask = tile(sample, first, channels, pixels, dim, PIXELS)
    gain = per_sample(rstd, sample, wide) * per_channel(weight, channels, dim, 1, wide)
    shift = per_channel(bias, channels, dim, 0, wide)
    centred = tl.load(x + where, mask=mask, other=0).to(wide) - per_sample(mean, sample, wide)
    # Channels that don't exist have weight and shift 0.
    normed = (centred * gain[None, :] + shift[None, :]).to(narrow)
    total = tl.zeros((PIXELS, CHANNELS), wide)
    for start in range(0, width, HIDDEN):
        units = start + tl.arange(0, HIDDEN)
        inside = (channels[:, None] < dim) & (units[None, :] < width)
        matrix = tl.load(w1 + units[None, :] * dim + channels[:, None], mask=inside, other=0)
        h = tl.dot(normed, matrix, out_dtype=wide) + per_channel(b1, units, width, 0, wide)[None, :]
        h = h.to(narrow)
        if hidden is not None:
            to, exists = tile(sample, first, units, pixels, width, PIXELS)
            tl.store(hidden + to, h, mask=exists)
        h = h.to(wide)
        inside = (units[:, None] < width) & (channels[None, :] < dim)
        matrix = tl.load(w2 + channels[None, :] * width + units[:, None], mask=inside, other=0)
        total = tl.dot((h * normal_cdf(h)).to(narrow), matrix, total, out_dtype=wide)
    total += per_channel(b2, channels, dim, 0, wide)[None, :]
    factor = per_channel(scale, channels, dim, 1, wide) * per_sample(drop, sample, wide)
    values = tl.load(x + where, mask=mask, other=0).to(wide)
    tl.store(out + where, values + total * factor[None, :], mask=mask)
