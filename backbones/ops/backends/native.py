"""The operators on a CPU with compiled loops between the matrix products.

As `cpu.py`, but what lies between two products is one pass, and the hidden activations of a chunk
of tokens are still in the cache at the next product. Maps and vectors are float32, products in
float32 or bfloat16; `backbones.ops.selection` gives the rest to `cpu.py`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ..maps import Statistics, tokens
from ..norm_mlp import MLPGradients, MLPInputs, finished
from ..pool_mix import PoolMixGradients, PoolMixInputs, gain_gradients
from . import library
from .cpu import mixing, split
from .products import add_outer, product

# Bytes of a chunk's hidden activations.
CHUNK = 4 << 20
# `backbones.ops.selection` takes this module only where there are loops.
_loop = cast(library.Loops, library.loops)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    statistics, out = moments(x, eps), torch.empty_like(x)
    _normalize(x, statistics, weight, bias, out, _all_tokens(x))
    return out, statistics


def norm_backward(
    grad: Tensor, x: Tensor, statistics: Statistics, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels` says."""
    everything, totals = _all_tokens(x), _norm_totals(x)
    _add_norm_sums(tokens(grad), x, statistics, totals, everything)
    parts = [(everything, tokens(grad))]
    return _norm_gradients(parts, None, x, statistics, weight, totals)


def pool_mix_forward(inputs: PoolMixInputs, eps: float) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    x = inputs.x
    statistics, out = moments(x, eps), torch.empty_like(x)
    _loop('pool_mix', x, mixing(inputs, statistics.rstd), out, *_sizes(x))
    return out, statistics


def pool_mix_backward(
    grad: Tensor, inputs: PoolMixInputs, statistics: Statistics
) -> PoolMixGradients:
    """As `Kernels` says."""
    x, drop = inputs.x, inputs.drop
    mean, rstd = statistics
    k = mixing(inputs, rstd)
    k_grad = torch.zeros_like(k, dtype=torch.float64)
    _loop('pool_mix_sums', grad, x, mean, k_grad, *_sizes(x))
    slant = -(k_grad * k).sum(1) * rstd.double().square() / x.shape[1:].numel()
    x_grad = torch.empty_like(x)
    _loop('pool_mix_gradient', grad, x, mean, k, slant.float(), x_grad, *_sizes(x))
    per_sample = rstd if drop is None else rstd * drop
    return gain_gradients(inputs, x_grad, (k_grad * per_sample.view(-1, 1)).sum(0).float())


def norm_mlp_forward(
    inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Statistics, Tensor]:
    """As `Kernels` says; the hidden tokens are those before b1 is added."""
    x, scale = inputs.x, inputs.scale
    statistics, out = moments(x, eps), torch.empty_like(x)
    first, second = inputs.w1.to(dtype).flatten(1), inputs.w2.to(dtype).flatten(1)
    b1, b2 = _vector(inputs.b1, first), _vector(inputs.b2, second)
    scale = torch.ones_like(b2) if scale is None else scale
    rows, out_rows = tokens(x), tokens(out)
    hidden = x.new_empty(len(rows) if keep else 0, len(first), dtype=dtype)
    for chunk in split(len(rows), first, CHUNK):
        a = x.new_empty(chunk.stop - chunk.start, len(second), dtype=dtype)
        _normalize(x, statistics, inputs.weight, inputs.bias, a, chunk)
        h = product(a, first)
        _loop('gelu', h, b1, hidden[chunk] if keep else None, *h.shape, dtype=dtype)
        y = product(h, second)
        branch = rows[chunk], y, b2, scale, inputs.drop, out_rows[chunk]
        _loop('add_branch', *branch, *_place(x, chunk), dtype=dtype)
    return out, statistics, hidden


def norm_mlp_backward(
    grad: Tensor, inputs: MLPInputs, statistics: Statistics, hidden: Tensor, dtype: torch.dtype
) -> MLPGradients:
    """As `Kernels` says."""
    x, weight, bias, drop = inputs.x, inputs.weight, inputs.bias, inputs.drop
    first, second = inputs.w1.to(dtype).flatten(1), inputs.scaled_w2.to(dtype).flatten(1)
    width, dim = first.shape
    b1 = _vector(inputs.b1, first)
    grads, norm_totals = tokens(grad), _norm_totals(x)
    w1_total, w2_total = (x.new_zeros(dim, width) for _ in range(2))
    b1_total, b2_total = (x.new_zeros(size, dtype=torch.float64) for size in (width, dim))
    plain = drop is None and dtype == grad.dtype  # the gradient is what the products take
    parts = []
    for chunk in split(len(grads), first, CHUNK):
        a = x.new_empty(chunk.stop - chunk.start, dim, dtype=dtype)
        _normalize(x, statistics, weight, bias, a, chunk)
        h = hidden[chunk] if len(hidden) else product(a, first)
        g = grads[chunk] if plain else torch.empty_like(a)
        branch = grads[chunk], drop, None if plain else g, b2_total
        _loop('scale_gradient', *branch, *_place(x, chunk), dtype=dtype)
        h_grad, activated = product(g, second.t()), torch.empty_like(h)
        _loop('gelu_gradient', h, b1, h_grad, activated, b1_total, *h.shape, dtype=dtype)
        add_outer(w2_total, g, activated)
        add_outer(w1_total, a, h_grad)
        normed_grad = product(h_grad, first.t())
        _add_norm_sums(normed_grad, x, statistics, norm_totals, chunk)
        parts.append((chunk, normed_grad))
    norm_grads = _norm_gradients(parts, grads, x, statistics, weight, norm_totals)
    w1_grad = w1_total.t().contiguous().view(inputs.w1.shape)
    w2_grad = w2_total.view(inputs.w2.shape)
    b1_grad, b2_grad = b1_total.float(), b2_total.float()
    return finished(inputs, MLPGradients(*norm_grads, w1_grad, b1_grad, w2_grad, b2_grad))


def moments(x: Tensor, eps: float) -> Statistics:
    """The statistics of each sample."""
    statistics = Statistics(x.new_empty(len(x)), x.new_empty(len(x)))
    _loop('moments', x, len(x), x.shape[1:].numel(), eps, *statistics)
    return statistics


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, dim, height, width = x.shape
    return batch, height, width, dim


def _all_tokens(x: Tensor) -> slice:
    return slice(0, x.shape[0] * x.shape[2] * x.shape[3])


def _place(x: Tensor, chunk: slice) -> tuple[int, int, int, int]:
    """Where a chunk of a map's tokens is: its first, their number, those of a sample; channels."""
    return chunk.start, chunk.stop - chunk.start, x.shape[2] * x.shape[3], x.shape[1]


def _vector(values: Tensor | None, weight: Tensor) -> Tensor:
    """A product's bias, zeros for none, rounded as its weight is but as the loops take it."""
    if values is None:
        return weight.new_zeros(len(weight), dtype=torch.float32)
    return values.to(weight.dtype).float().contiguous()


def _normalize(
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    chunk: slice,
) -> None:
    """Write a chunk's normalised tokens to out, in its dtype."""
    arguments = tokens(x)[chunk], *statistics, weight, bias, out
    _loop('normalize', *arguments, *_place(x, chunk), dtype=out.dtype)


def _norm_totals(x: Tensor) -> Tensor:
    """For each sample and channel the sums of a gradient, and of it times x - mean: zeros."""
    return x.new_zeros(len(x), 2, x.shape[1], dtype=torch.float64)


def _add_norm_sums(
    grad: Tensor, x: Tensor, statistics: Statistics, totals: Tensor, chunk: slice
) -> None:
    arguments = grad, tokens(x)[chunk], statistics.mean, totals
    _loop('norm_sums', *arguments, *_place(x, chunk), dtype=grad.dtype)


def _norm_gradients(
    parts: list[tuple[slice, Tensor]],
    shortcut: Tensor | None,
    x: Tensor,
    statistics: Statistics,
    weight: Tensor,
    totals: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a norm's input (with the shortcut's added), weight and bias.

    Args:
        parts: Chunks of tokens and the gradients of what they were normalised to.
        shortcut: (T, C), added to the gradient of the input.
        x: The input.
        statistics: Of the input.
        weight: (C,).
        totals: Of `_norm_totals`, complete.
    """
    mean, rstd = statistics
    wide = rstd.double()
    inner = (totals * weight).sum(2) / x.shape[1:].numel()  # (B, 2)
    shift, slant = (inner[:, 0] * wide).float(), (inner[:, 1] * wide**3).float()
    x_grad = torch.empty_like(x)
    rows, out = tokens(x), tokens(x_grad)
    for chunk, grad in parts:
        add = None if shortcut is None else shortcut[chunk]
        arguments = add, grad, rows[chunk], mean, rstd, weight, shift, slant, out[chunk]
        _loop('norm_gradient', *arguments, *_place(x, chunk), dtype=grad.dtype)
    sums, products = totals.unbind(1)
    return x_grad, (products * wide.view(-1, 1)).sum(0).float(), sums.sum(0).float()
