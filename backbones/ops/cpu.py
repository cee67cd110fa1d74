"""The operators on a CPU: torch's own, arranged for the cache.

Maps are in channels-last order, which makes them lists of tokens (T, C), T = B*H*W. The channel
MLP takes the tokens in chunks, so that the hidden activations of a chunk stay in the cache between
its two products instead of going through memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import product

# Bytes of a chunk's hidden activations.
CHUNK = 6 << 20


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`reference.modified_layer_norm`, with the statistics (B,) that backward needs."""
    mean, rstd = moments(x, eps)
    out = _normalize(x - _per_sample(mean), rstd, weight, bias)
    return out.to(x.dtype), mean, rstd


def norm_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight and bias."""
    return _centred_norm_backward(grad.to(mean.dtype), x - _per_sample(mean), rstd, weight)


def pool_mix_forward(
    x: Tensor, gain: Tensor, drop: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """``x + k * (P(x) - x)`` with ``k = gain * drop / std``, and the statistics (B,).

    The norm's mean and shift cancel in ``P(n(x)) - n(x)``, so no normalised copy exists.
    """
    mean, rstd = moments(x, eps)
    wide = x.to(mean.dtype)
    pooled = F.avg_pool2d(wide, 3, stride=1, padding=1, count_include_pad=False)
    out = torch.lerp(wide, pooled, _mixing(gain, drop, rstd))
    return out.to(x.dtype), mean, rstd


def pool_mix_backward(
    grad: Tensor, x: Tensor, gain: Tensor, drop: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x and gain.

    With the adjoint ``Q = P^T(grad) - grad``, the gradient of k is ``sum Q * (x - mean)``: Q sums
    to zero over a map, and centred products lose no digits when the mean is large.
    """
    grad, centred = grad.to(mean.dtype), x - _per_sample(mean)
    k = _mixing(gain, drop, rstd)
    adjoint = torch.ops.aten.avg_pool2d_backward(
        grad, centred, [3, 3], [1, 1], [1, 1], False, False, None
    )
    k_grad = (adjoint - grad).mul_(centred).sum((2, 3))  # (B, C)
    through_std = -(k_grad * k.flatten(1)).sum(1) * rstd.square() / x[0].numel()
    x_grad = torch.lerp(grad, adjoint, k).add_(centred.mul_(_per_sample(through_std)))
    per_sample = rstd if drop is None else rstd * drop
    return x_grad, (k_grad * per_sample.view(-1, 1)).sum(0)


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
    """`reference.norm_mlp`, the statistics (B,) and the hidden tokens before activation (T, E).

    ``dtype`` is that of the matrix products. The hidden tokens have no rows unless ``keep``.
    """
    mean, rstd = moments(x, eps)
    normed = _normalize(x - _per_sample(mean), rstd, weight, bias)
    first, second = (w1.to(dtype), _to(b1, dtype)), (w2.to(dtype), _to(b2, dtype))
    out = torch.empty_like(x)
    tokens, normed, out_tokens = _tokens(x), _tokens(normed), _tokens(out)
    hidden = x.new_empty(len(tokens) if keep else 0, len(w1), dtype=dtype)
    drop = _per_token(drop, x)
    for chunk in _chunks(len(tokens), first[0]):
        h = _linear(normed[chunk].to(dtype), *first, out=hidden[chunk] if keep else None)
        y = _linear(F.gelu(h), *second).to(mean.dtype)
        for factor in (scale, drop if drop is None else drop[chunk]):
            if factor is not None:
                y.mul_(factor)
        torch.add(tokens[chunk], y, out=out_tokens[chunk])
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
    """Gradients of x, weight, bias, w1, b1, ``scale * w2`` and ``scale * b2``.

    With scale in w2 one product serves the gradients of both. ``hidden`` is as forward returned it;
    without rows it is computed again.
    """
    centred = x - _per_sample(mean)
    normed = _normalize(centred, rstd, weight, bias)
    normed_grad = torch.empty_like(normed)
    first = w1.to(dtype), _to(b1, dtype)
    second = (w2 if scale is None else w2 * scale.view(-1, 1, 1, 1)).to(dtype)
    inputs, grads, input_grads = _tokens(normed), _tokens(grad), _tokens(normed_grad)
    drop = _per_token(drop, x)
    totals: list[Tensor] = []
    for chunk in _chunks(len(inputs), first[0]):
        a = inputs[chunk].to(dtype)
        h = hidden[chunk] if len(hidden) else _linear(a, *first)
        g = grads[chunk] if drop is None else grads[chunk] * drop[chunk]
        g, *second_grads = _linear_backward(g.to(dtype), F.gelu(h), second)
        g, *first_grads = _linear_backward(torch.ops.aten.gelu_backward(g, h), a, first[0])
        input_grads[chunk] = g
        parts = [part.to(mean.dtype) for part in (*first_grads, *second_grads)]
        totals = [a.add_(b) for a, b in zip(totals, parts, strict=True)] if totals else parts
    del normed
    x_grad, weight_grad, bias_grad = _centred_norm_backward(normed_grad, centred, rstd, weight)
    x_grad += grad
    return x_grad, weight_grad, bias_grad, *totals


def moments(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return the mean and 1/sqrt(var + eps) of each sample (B,), at least in float32.

    torch's group norm has exact statistics of what is contiguous, but not of channels-last maps: a
    mean of 1000 costs them five digits. So it is asked for the statistics of the rows, each
    contiguous, which are then put together (Chan et al., "Algorithms for computing the sample
    variance", 1983).
    """
    batch, size = len(x), x[0].numel()
    count = x.shape[2]  # of pieces: one a row
    pieces = x.permute(0, 2, 3, 1).reshape(batch, count, -1)
    # With weights in float32 the statistics of a bfloat16 map come in float32 too.
    ones = x.new_ones(count, dtype=torch.promote_types(x.dtype, torch.float32))
    _, means, rstds = torch.native_group_norm(
        pieces, ones, torch.zeros_like(ones), batch, count, size // count, count, 0.0
    )
    dtype, means, variances = means.dtype, means.double(), rstds.double().square().reciprocal()
    mean = means.mean(1)
    variance = (variances + (means - mean[:, None]).square()).mean(1)
    return mean.to(dtype), (variance + eps).rsqrt().to(dtype)


def _normalize(centred: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    normed = centred * (_per_sample(rstd) * weight.view(-1, 1, 1))
    return normed if bias is None else normed.add_(bias.view(-1, 1, 1))


def _centred_norm_backward(
    grad: Tensor, centred: Tensor, rstd: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    batch, dim, height, width = centred.shape
    x_grad, _, _ = torch.ops.aten.native_group_norm_backward(
        grad,
        centred,
        torch.zeros_like(rstd).view(batch, 1),
        rstd.view(batch, 1),
        weight.to(rstd.dtype),
        batch,
        dim,
        height * width,
        1,
        [True, False, False],
    )
    # Its sums over pixels lose digits in channels-last maps; torch.sum's do not.
    weight_grad = (grad * centred).sum((2, 3)).mul_(rstd.view(-1, 1)).sum(0)
    return x_grad, weight_grad, grad.sum((0, 2, 3))


def _per_sample(values: Tensor) -> Tensor:
    """(B,) as a factor of maps."""
    return values.view(-1, 1, 1, 1)


def _per_token(values: Tensor | None, x: Tensor) -> Tensor | None:
    """(B,) as a factor of tokens, (T, 1)."""
    if values is None:
        return None
    return values.repeat_interleave(x.shape[2] * x.shape[3])[:, None]


def _mixing(gain: Tensor, drop: Tensor | None, rstd: Tensor) -> Tensor:
    per_sample = rstd if drop is None else rstd * drop
    return (per_sample.view(-1, 1) * gain)[:, :, None, None]  # (B, C, 1, 1)


def _chunks(tokens: int, weight: Tensor) -> Iterator[slice]:
    most = max(1, CHUNK // (len(weight) * weight.element_size()))
    size = math.ceil(tokens / math.ceil(tokens / most))  # of equal sizes, or nearly so
    return (slice(start, start + size) for start in range(0, tokens, size))


def _tokens(x: Tensor) -> Tensor:
    """A channels-last map as (T, C), without a copy."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def _linear(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    weight = weight.flatten(1)
    if out is None or weight.dtype != torch.bfloat16:
        y = product(tokens, weight, bias)
        return y if out is None else out.copy_(y)
    if bias is None:
        return torch.mm(tokens, weight.t(), out=out)
    return torch.addmm(bias, tokens, weight.t(), out=out)


def _linear_backward(grad: Tensor, tokens: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, weight and bias."""
    # The faster of two ways to write it.
    wider = grad.shape[1] > tokens.shape[1]
    weight_grad = (tokens.t() @ grad).t() if wider else grad.t() @ tokens
    return product(grad, weight.flatten(1).t()), weight_grad.reshape(weight.shape), grad.sum(0)


def _to(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if x is None else x.to(dtype)
