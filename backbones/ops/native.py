"""The operators on a CPU with compiled loops between the matrix products.

As `cpu.py`, but what lies between two products is one pass, and the hidden activations of a chunk
of tokens are still in the cache at the next product. What the loops do not cover, other dtypes
than float32 with products in float32 or bfloat16, is done there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from . import cpu, library
from .cpu import _mixing, _tokens
from .products import add_outer, product

_call = library.load()
AVAILABLE = _call is not None
# Bytes of a chunk's hidden activations.
CHUNK = 4 << 20
_SUFFIXES = {torch.float32: 'float', torch.bfloat16: 'bfloat16'}


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.norm_forward`."""
    if not _covers(x, weight, bias):
        return cpu.norm_forward(x, weight, bias, eps)
    mean, rstd = moments(x, eps)
    out = torch.empty_like(x)
    _normalize(x, mean, rstd, weight, bias, out, slice(0, _length(x)))
    return out, mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.norm_backward`."""
    if not _covers(x, grad, weight):
        return cpu.norm_backward(grad, x, mean, rstd, weight)
    everything = slice(0, _length(x))
    totals = _norm_totals(x)
    _add_norm_sums(_tokens(grad), x, mean, totals, everything)
    return _norm_gradients([(everything, _tokens(grad))], None, x, mean, rstd, weight, totals)


def pool_mix_forward(
    x: Tensor, gain: Tensor, drop: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As `cpu.pool_mix_forward`."""
    if not _covers(x, gain, drop):
        return cpu.pool_mix_forward(x, gain, drop, eps)
    mean, rstd = moments(x, eps)
    out = torch.empty_like(x)
    _call('pool_mix_float', x, _mixing(gain, drop, rstd).contiguous(), out, *_sizes(x))
    return out, mean, rstd


def pool_mix_backward(
    grad: Tensor, x: Tensor, gain: Tensor, drop: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """As `cpu.pool_mix_backward`."""
    if not _covers(x, grad, gain, drop):
        return cpu.pool_mix_backward(grad, x, gain, drop, mean, rstd)
    k = _mixing(gain, drop, rstd).flatten(1).contiguous()
    k_grad = torch.zeros_like(k, dtype=torch.float64)
    _call('pool_mix_sums_float', grad, x, mean, k_grad, *_sizes(x))
    slant = -(k_grad * k).sum(1) * rstd.double().square() / x[0].numel()
    x_grad = torch.empty_like(x)
    _call('pool_mix_gradient_float', grad, x, mean, k, slant.float(), x_grad, *_sizes(x))
    per_sample = rstd if drop is None else rstd * drop
    return x_grad, (k_grad * per_sample.view(-1, 1)).sum(0).float()


def norm_mlp_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.norm_mlp_forward`, but the hidden tokens are without b1."""
    if dtype not in _SUFFIXES or not _covers(x, weight, bias, scale, drop):
        arguments = (x, weight, bias, w1, b1, w2, b2, scale, drop, eps, dtype, keep)
        return cpu.norm_mlp_forward(*arguments)
    kind = _SUFFIXES[dtype]
    mean, rstd = moments(x, eps)
    out = torch.empty_like(x)
    tokens, out_tokens = _tokens(x), _tokens(out)
    first, second = w1.to(dtype).flatten(1), w2.to(dtype).flatten(1)
    b1, b2 = _vector(b1, first), _vector(b2, second)
    scale = torch.ones_like(b2) if scale is None else scale
    hidden = x.new_empty(len(tokens) if keep else 0, len(first), dtype=dtype)
    for chunk in _chunks(len(tokens), first):
        a = x.new_empty(chunk.stop - chunk.start, len(second), dtype=dtype)
        _normalize(x, mean, rstd, weight, bias, a, chunk)
        h = product(a, first)
        _call(f'gelu_{kind}', h, b1, hidden[chunk] if keep else None, *h.shape)
        y = product(h, second)
        where = tokens[chunk], y, b2, scale, drop, out_tokens[chunk]
        _call(f'add_branch_{kind}', *where, *_rows(x, chunk))
    return out, mean, rstd, hidden


def norm_mlp_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `cpu.norm_mlp_backward`."""
    if dtype not in _SUFFIXES or not _covers(x, grad, weight, bias, scale, drop):
        arguments = (grad, x, weight, bias, w1, b1, w2, b2, scale, drop, mean, rstd, hidden, dtype)
        return cpu.norm_mlp_backward(*arguments)
    kind = _SUFFIXES[dtype]
    scaled = w2 if scale is None else w2 * scale.view(-1, 1, 1, 1)
    first, second = w1.to(dtype).flatten(1), scaled.to(dtype).flatten(1)
    width, dim = first.shape
    shift = _vector(b1, first)
    grads = _tokens(grad)
    norm_totals = _norm_totals(x)
    w1_total, w2_total = (x.new_zeros(dim, width) for _ in range(2))
    b1_total = x.new_zeros(width, dtype=torch.float64)
    b2_total = x.new_zeros(dim, dtype=torch.float64)
    plain = drop is None and dtype == grad.dtype  # the gradient is what the products take
    parts = []
    for chunk in _chunks(len(grads), first):
        a = x.new_empty(chunk.stop - chunk.start, dim, dtype=dtype)
        _normalize(x, mean, rstd, weight, bias, a, chunk)
        h = hidden[chunk] if len(hidden) else product(a, first)
        g = grads[chunk] if plain else torch.empty_like(a)
        where = grads[chunk], drop, None if plain else g, b2_total
        _call(f'scale_gradient_{kind}', *where, *_rows(x, chunk))
        h_grad, activated = product(g, second.t()), torch.empty_like(h)
        _call(f'gelu_gradient_{kind}', h, shift, h_grad, activated, b1_total, *h.shape)
        add_outer(w2_total, g, activated)
        add_outer(w1_total, a, h_grad)
        normed_grad = product(h_grad, first.t())
        _add_norm_sums(normed_grad, x, mean, norm_totals, chunk)
        parts.append((chunk, normed_grad))
    x_grad, weight_grad, bias_grad = _norm_gradients(
        parts, grads, x, mean, rstd, weight, norm_totals
    )
    w1_grad = w1_total.t().contiguous().view(w1.shape)
    w2_grad = w2_total.view(w2.shape)
    return x_grad, weight_grad, bias_grad, w1_grad, b1_total.float(), w2_grad, b2_total.float()


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """As `cpu.moments`, of a map that the loops cover."""
    mean, rstd = x.new_empty(len(x)), x.new_empty(len(x))
    _call('moments_float', x, len(x), x[0].numel(), eps, mean, rstd)
    return mean, rstd


def _covers(x: Tensor, *others: Tensor | None) -> bool:
    return all(t is None or t.dtype == torch.float32 for t in (x, *others))


def _sizes(x: Tensor) -> tuple[int, int, int, int]:
    batch, dim, height, width = x.shape
    return batch, height, width, dim


def _length(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _chunks(tokens: int, weight: Tensor) -> Iterator[slice]:
    most = max(1, CHUNK // (len(weight) * weight.element_size()))
    size = math.ceil(tokens / math.ceil(tokens / most))  # of equal sizes, or nearly so
    return (slice(start, min(start + size, tokens)) for start in range(0, tokens, size))


def _vector(values: Tensor | None, weight: Tensor) -> Tensor:
    """A product's bias, zeros for none, rounded as its weight is but as the loops take it."""
    if values is None:
        return weight.new_zeros(len(weight), dtype=torch.float32)
    return values.to(weight.dtype).float().contiguous()


def _rows(x: Tensor, chunk: slice) -> tuple[int, int, int, int]:
    """Where a chunk of a map's tokens is: its first, their number, those of a sample; channels."""
    return chunk.start, chunk.stop - chunk.start, x.shape[2] * x.shape[3], x.shape[1]


def _normalize(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    out: Tensor,
    chunk: slice,
) -> None:
    """Write a chunk's normalised tokens to out, in its dtype."""
    name = f'normalize_{_SUFFIXES[out.dtype]}'
    _call(name, _tokens(x)[chunk], mean, rstd, weight, bias, out, *_rows(x, chunk))


def _norm_totals(x: Tensor) -> Tensor:
    """For each sample and channel the sums of a gradient, and of it times x - mean: zeros."""
    return x.new_zeros(len(x), 2, x.shape[1], dtype=torch.float64)


def _add_norm_sums(grad: Tensor, x: Tensor, mean: Tensor, totals: Tensor, chunk: slice) -> None:
    name = f'norm_sums_{_SUFFIXES[grad.dtype]}'
    _call(name, grad, _tokens(x)[chunk], mean, totals, *_rows(x, chunk))


def _norm_gradients(
    parts: list[tuple[slice, Tensor]],
    shortcut: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    totals: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a norm's input (with the shortcut's added), weight and bias.

    Args:
        parts: Chunks of tokens and the gradients of what they were normalised to.
        shortcut: (T, C), added to the gradient of the input.
        x: The input.
        mean: (B,).
        rstd: (B,).
        weight: (C,).
        totals: Of `_norm_totals`, complete.
    """
    wide = rstd.double()
    inner = (totals * weight).sum(2) / x[0].numel()  # (B, 2)
    shift, slant = (inner[:, 0] * wide).float(), (inner[:, 1] * wide**3).float()
    x_grad = torch.empty_like(x)
    tokens, out = _tokens(x), _tokens(x_grad)
    for chunk, grad in parts:
        add = None if shortcut is None else shortcut[chunk]
        where = add, grad, tokens[chunk], mean, rstd, weight, shift, slant, out[chunk]
        _call(f'norm_gradient_{_SUFFIXES[grad.dtype]}', *where, *_rows(x, chunk))
    sums, products = totals.unbind(1)
    return x_grad, (products * wide.view(-1, 1)).sum(0).float(), sums.sum(0).float()
