"""The operators on a CPU: torch's own, arranged for the cache.

The channel MLP takes its tokens in chunks, so that the hidden activations of a chunk stay in the
cache between its two products instead of going through memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..maps import Statistics, tokens, wide
from ..norm_mlp import MLPGradients, MLPInputs, finished
from ..pool_mix import PoolMixGradients, PoolMixInputs, gain_gradients
from .balance import balanced
from .products import product

# Bytes of a chunk's hidden activations.
CHUNK = 6 << 20


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    statistics = moments(x, eps)
    out = _normalize(x - _per_sample(statistics.mean), statistics.rstd, weight, bias)
    return out.to(x.dtype), statistics


def norm_backward(
    grad: Tensor, x: Tensor, statistics: Statistics, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `Kernels` says."""
    mean, rstd = statistics
    return _centred_norm_backward(grad.to(mean.dtype), x - _per_sample(mean), rstd, weight)


def pool_mix_forward(inputs: PoolMixInputs, eps: float) -> tuple[Tensor, Statistics]:
    """As `Kernels` says."""
    x = inputs.x
    statistics = moments(x, eps)
    wide_x = x.to(wide(x.dtype))
    pooled = F.avg_pool2d(wide_x, 3, stride=1, padding=1, count_include_pad=False)
    k = mixing(inputs, statistics.rstd)[:, :, None, None]
    return torch.lerp(wide_x, pooled, k).to(x.dtype), statistics


def pool_mix_backward(
    grad: Tensor, inputs: PoolMixInputs, statistics: Statistics
) -> PoolMixGradients:
    """As `Kernels` says."""
    x, drop = inputs.x, inputs.drop
    mean, rstd = statistics
    grad, centred = grad.to(mean.dtype), x - _per_sample(mean)
    k = mixing(inputs, rstd)
    adjoint = torch.ops.aten.avg_pool2d_backward(
        grad, centred, [3, 3], [1, 1], [1, 1], False, False, None
    )
    k_grad = (adjoint - grad).mul_(centred).sum((2, 3))  # (B, C)
    through_std = -(k_grad * k).sum(1) * rstd.square() / x.shape[1:].numel()
    x_grad = torch.lerp(grad, adjoint, k[:, :, None, None])
    x_grad.add_(centred.mul_(_per_sample(through_std)))
    per_sample = rstd if drop is None else rstd * drop
    return gain_gradients(inputs, x_grad, (k_grad * per_sample.view(-1, 1)).sum(0))


def norm_mlp_forward(
    inputs: MLPInputs, eps: float, dtype: torch.dtype, keep: bool
) -> tuple[Tensor, Statistics, Tensor]:
    """As `Kernels` says; the hidden tokens are those before the activation."""
    x = inputs.x
    statistics = moments(x, eps)
    mean, rstd = statistics
    normed = tokens(_normalize(x - _per_sample(mean), rstd, inputs.weight, inputs.bias))
    first = inputs.w1.to(dtype), _to(inputs.b1, dtype)
    second = inputs.w2.to(dtype), _to(inputs.b2, dtype)
    out = torch.empty_like(x)
    rows, out_rows, drop = tokens(x), tokens(out), _per_token(inputs.drop, x)
    hidden = x.new_empty(len(rows) if keep else 0, len(inputs.w1), dtype=dtype)
    for chunk in split(len(rows), first[0], CHUNK):
        h = _linear(normed[chunk].to(dtype), *first, out=hidden[chunk] if keep else None)
        y = _linear(F.gelu(h), *second).to(mean.dtype)
        for factor in (inputs.scale, None if drop is None else drop[chunk]):
            if factor is not None:
                y.mul_(factor)
        torch.add(rows[chunk], y, out=out_rows[chunk])
    return out, statistics, hidden


def norm_mlp_backward(
    grad: Tensor, inputs: MLPInputs, statistics: Statistics, hidden: Tensor, dtype: torch.dtype
) -> MLPGradients:
    """As `Kernels` says."""
    mean, rstd = statistics
    centred = inputs.x - _per_sample(mean)
    normed = _normalize(centred, rstd, inputs.weight, inputs.bias)
    normed_grad = torch.empty_like(normed)
    balance = balanced(grad, inputs) if dtype == torch.float16 else None
    second = (inputs.scaled_w2 if balance is None else balance.w2).to(dtype)
    first = inputs.w1.to(dtype), _to(inputs.b1, dtype)
    normed_rows, grads, input_grads = tokens(normed), tokens(grad), tokens(normed_grad)
    drop = _per_token(inputs.drop, grad)
    totals: list[Tensor] = []
    for chunk in split(len(grads), first[0], CHUNK):
        a = normed_rows[chunk].to(dtype)
        h = hidden[chunk] if len(hidden) else _linear(a, *first)
        g = grads[chunk] if drop is None else grads[chunk] * drop[chunk]
        g = g if balance is None else g * balance.factor
        g, *second_grads = _linear_backward(g.to(dtype), F.gelu(h), second)
        g, *first_grads = _linear_backward(torch.ops.aten.gelu_backward(g, h), a, first[0])
        input_grads[chunk] = g
        parts = [part.to(mean.dtype) for part in (*first_grads, *second_grads)]
        totals = [a.add_(b) for a, b in zip(totals, parts, strict=True)] if totals else parts
    del normed, normed_rows
    x_grad, *norm_grads = _centred_norm_backward(normed_grad, centred, rstd, inputs.weight)
    firsts, seconds = [*norm_grads, *totals[:2]], totals[2:]
    if balance is not None:
        for total in (x_grad, *firsts):
            total.div_(balance.unit)
        seconds = [total / balance.factor.view(-1, *[1] * (total.ndim - 1)) for total in seconds]
    x_grad += grad
    return finished(inputs, MLPGradients(x_grad, *firsts, *seconds))


def moments(x: Tensor, eps: float) -> Statistics:
    """The statistics of each sample.

    torch's group norm has exact statistics of what is contiguous, but not of channels-last maps: a
    mean of 1000 costs them five digits. So it is asked for the statistics of the rows, each
    contiguous, which are then put together (Chan et al., "Algorithms for computing the sample
    variance", 1983).
    """
    batch, size = len(x), x.shape[1:].numel()
    count = x.shape[2]  # of pieces: one a row
    pieces = x.permute(0, 2, 3, 1).reshape(batch, count, -1)
    # With weights in float32 the statistics of a bfloat16 map come in float32 too.
    ones = x.new_ones(count, dtype=wide(x.dtype))
    _, means, rstds = torch.native_group_norm(
        pieces, ones, torch.zeros_like(ones), batch, count, size // count, count, 0.0
    )
    dtype, means, variances = means.dtype, means.double(), rstds.double().square().reciprocal()
    mean = means.mean(1)
    variance = (variances + (means - mean[:, None]).square()).mean(1)
    return Statistics(mean.to(dtype), (variance + eps).rsqrt().to(dtype))


def mixing(inputs: PoolMixInputs, rstd: Tensor) -> Tensor:
    """The factor k of ``x + k * (P(x) - x)``, (B, C)."""
    per_sample = rstd if inputs.drop is None else rstd * inputs.drop
    return (per_sample.view(-1, 1) * inputs.gain).to(rstd.dtype)


def split(rows: int, weight: Tensor, most_bytes: int) -> Iterator[slice]:
    """Cut tokens into chunks of equal sizes, or nearly so, by the bytes of their product."""
    most = max(1, most_bytes // (len(weight) * weight.element_size()))
    size = math.ceil(rows / max(1, math.ceil(rows / most)))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _normalize(centred: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    normed = centred * (_per_sample(rstd) * weight.view(-1, 1, 1))
    return normed if bias is None else normed.add_(bias.view(-1, 1, 1))


def _centred_norm_backward(
    grad: Tensor, centred: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim, height, width = centred.shape
    mean, rstd = torch.zeros_like(rstd).view(-1, 1), rstd.view(-1, 1)
    wanted = [True, False, False]
    x_grad, _, _ = torch.ops.aten.native_group_norm_backward(
        grad, centred, mean, rstd, weight.to(rstd.dtype), batch, dim, height * width, 1, wanted
    )
    # Its sums over pixels lose digits in channels-last maps; torch.sum's do not.
    weight_grad = (grad * centred).sum((2, 3)).mul_(rstd).sum(0)
    return x_grad, weight_grad, grad.sum((0, 2, 3))


def _per_sample(values: Tensor) -> Tensor:
    """(B,) as a factor of maps."""
    return values.view(-1, 1, 1, 1)


def _per_token(values: Tensor | None, x: Tensor) -> Tensor | None:
    """(B,) as a factor of tokens, (T, 1)."""
    if values is None:
        return None
    return values.repeat_interleave(x.shape[2] * x.shape[3])[:, None]


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None) -> Tensor:
    weight = weight.flatten(1)
    if out is None or weight.dtype != torch.bfloat16:
        y = product(rows, weight, bias)
        return y if out is None else out.copy_(y)
    if bias is None:
        return torch.mm(rows, weight.t(), out=out)
    return torch.addmm(bias, rows, weight.t(), out=out)


def _linear_backward(grad: Tensor, rows: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias."""
    # The faster of two ways to write it.
    wider = grad.shape[1] > rows.shape[1]
    weight_grad = (rows.t() @ grad).t() if wider else grad.t() @ rows
    return product(grad, weight.flatten(1).t()), weight_grad.reshape(weight.shape), grad.sum(0)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
