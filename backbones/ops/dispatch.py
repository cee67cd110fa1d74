"""The operators as the model calls them, and their gradients.

A path is a module with the functions of `cpu.py`. The operators are custom operators of torch, so
that ``torch.compile`` takes each as one step and autograd keeps only what is handed to
``save_for_backward``.
"""

# ruff: noqa: UP045  torch reads the operators' schemas from annotations, and only knows Optional
from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from . import cpu, native, reference
from .paths import resolve


def modified_layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, path: str = 'auto'
) -> Tensor:
    """`reference.modified_layer_norm`, fused."""
    path = resolve(path, x.device.type)
    if path == 'reference':
        return reference.modified_layer_norm(x, weight, bias, eps)
    return _norm(_stream(x), weight, bias, eps, path)[0]


def pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    eps: float,
    path: str = 'auto',
) -> Tensor:
    """`reference.pool_mix`, fused: a variance, a stencil, no normalised copy."""
    path = resolve(path, x.device.type)
    if path == 'reference':
        return reference.pool_mix(x, weight, bias, scale, drop, eps)
    return _pool_mix(_stream(x), weight, bias, scale, drop, eps, path)[0]


def norm_mlp(
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
    recompute: bool = False,
    path: str = 'auto',
) -> Tensor:
    """`reference.norm_mlp`, fused.

    With ``recompute`` the hidden activations are computed again in backward instead of kept.
    """
    path = resolve(path, x.device.type)
    if path == 'reference':
        return reference.norm_mlp(x, weight, bias, w1, b1, w2, b2, scale, drop, eps)
    x = _stream(x)
    dtype = _product_dtype(x)
    inputs = (x, weight, bias, w1, b1, w2, b2, scale)
    keep = not recompute and torch.is_grad_enabled()
    keep = keep and any(t is not None and t.requires_grad for t in inputs)
    return _norm_mlp(*inputs, drop, eps, dtype, keep, path)[0]


def _stream(x: Tensor) -> Tensor:
    """The residual stream's dtype and layout: under autocast norms and sums are in float32."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
    return _channels_last(x)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _product_dtype(x: Tensor) -> torch.dtype:
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype


def _module(path: str):
    if path == 'cpu':
        return cpu
    if path == 'native':
        return native
    from . import triton

    return triton


def _plain(x: Tensor):
    """No autocast inside an operator: it casts for itself."""
    return torch.autocast(x.device.type, enabled=False)


@torch.library.custom_op('metaformer::modified_layer_norm', mutates_args=())
def _norm(
    x: Tensor, weight: Tensor, bias: Optional[Tensor], eps: float, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    with _plain(x):
        return _module(path).norm_forward(x, weight, bias, eps)


@torch.library.custom_op('metaformer::modified_layer_norm_backward', mutates_args=())
def _norm_backward(
    grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor, path: str
) -> tuple[Tensor, Tensor, Tensor]:
    with _plain(x):
        grads = _module(path).norm_backward(_channels_last(grad), x, mean, rstd, weight)
        return _as([x, weight, weight], grads)


@torch.library.custom_op('metaformer::pool_mix', mutates_args=())
def _pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    scale: Optional[Tensor],
    drop: Optional[Tensor],
    eps: float,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with _plain(x):
        return _module(path).pool_mix_forward(x, _gain(weight, scale), drop, eps)


@torch.library.custom_op('metaformer::pool_mix_backward', mutates_args=())
def _pool_mix_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    scale: Optional[Tensor],
    drop: Optional[Tensor],
    mean: Tensor,
    rstd: Tensor,
    path: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with _plain(x):
        gain, grad = _gain(weight, scale), _channels_last(grad)
        grad_x, grad_gain = _module(path).pool_mix_backward(grad, x, gain, drop, mean, rstd)
        grad_scale = grad_gain * weight
        grad_weight = grad_gain if scale is None else grad_gain * scale
        return _as([x, weight, weight], (grad_x, grad_weight, grad_scale))


@torch.library.custom_op('metaformer::norm_mlp', mutates_args=())
def _norm_mlp(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    w1: Tensor,
    b1: Optional[Tensor],
    w2: Tensor,
    b2: Optional[Tensor],
    scale: Optional[Tensor],
    drop: Optional[Tensor],
    eps: float,
    dtype: torch.dtype,
    keep: bool,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with _plain(x):
        return _module(path).norm_mlp_forward(
            x, weight, bias, w1, b1, w2, b2, scale, drop, eps, dtype, keep
        )


@torch.library.custom_op('metaformer::norm_mlp_backward', mutates_args=())
def _norm_mlp_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor],
    w1: Tensor,
    b1: Optional[Tensor],
    w2: Tensor,
    b2: Optional[Tensor],
    scale: Optional[Tensor],
    drop: Optional[Tensor],
    mean: Tensor,
    rstd: Tensor,
    hidden: Tensor,
    dtype: torch.dtype,
    path: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    with _plain(x):
        inputs = x, weight, bias, w1, b1, w2, b2, scale, drop
        *grads, w2_grad, b2_grad = _module(path).norm_mlp_backward(
            _channels_last(grad), *inputs, mean, rstd, hidden, dtype
        )
        grads += _through_scale(w2_grad, b2_grad, w2, b2, scale)
        return _as(_norm_mlp_like(x, weight, w1, w2), grads)


def _through_scale(
    w2_grad: Tensor, b2_grad: Tensor, w2: Tensor, b2: Tensor | None, scale: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of w2, b2 and scale from those of ``scale * w2`` and ``scale * b2``."""
    scale_grad = torch.linalg.vecdot(w2_grad.flatten(1), w2.flatten(1).to(w2_grad.dtype))
    if b2 is not None:
        scale_grad = scale_grad + b2_grad * b2
    if scale is not None:
        w2_grad, b2_grad = w2_grad * scale.view(-1, 1, 1, 1), b2_grad * scale
    return w2_grad, b2_grad, scale_grad


def _gain(weight: Tensor, scale: Tensor | None) -> Tensor:
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return wide if scale is None else wide * scale


def _norm_mlp_like(x: Tensor, weight: Tensor, w1: Tensor, w2: Tensor) -> list[Tensor]:
    """What the gradients of x, weight, bias, w1, b1, w2, b2 and scale look like."""
    return [x, weight, weight, w1, w1[:, 0, 0, 0], w2, weight, weight]


def _as(like: list[Tensor], grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(g.to(t.dtype) for t, g in zip(like, grads, strict=True))


def _statistics(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32))


def _map_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


@_norm.register_fake
def _(x, weight, bias, eps, path):
    return _map_like(x), _statistics(x), _statistics(x)


@_norm_backward.register_fake
def _(grad, x, weight, mean, rstd, path):
    return _map_like(x), torch.empty_like(weight), torch.empty_like(weight)


@_pool_mix.register_fake
def _(x, weight, bias, scale, drop, eps, path):
    return _map_like(x), _statistics(x), _statistics(x)


@_pool_mix_backward.register_fake
def _(grad, x, weight, scale, drop, mean, rstd, path):
    return _map_like(x), torch.empty_like(weight), torch.empty_like(weight)


@_norm_mlp.register_fake
def _(x, weight, bias, w1, b1, w2, b2, scale, drop, eps, dtype, keep, path):
    tokens = x.shape[0] * x.shape[2] * x.shape[3] if keep else 0
    hidden = x.new_empty(tokens, w1.shape[0], dtype=dtype)
    return _map_like(x), _statistics(x), _statistics(x), hidden


@_norm_mlp_backward.register_fake
def _(grad, x, weight, bias, w1, b1, w2, b2, scale, drop, mean, rstd, hidden, dtype, path):
    like = _norm_mlp_like(x, weight, w1, w2)[1:]
    return (_map_like(x), *(t.new_empty(t.shape) for t in like))


def _keep_norm(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # only the first output has a gradient
    x, weight, bias, _, ctx.path = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, *output[1:])


def _norm_gradients(ctx, grad, *_):
    if grad is None:
        return (None,) * 5
    x, weight, mean, rstd = ctx.saved_tensors
    grads = _norm_backward(grad, x, weight, mean, rstd, ctx.path)
    return grads[0], grads[1], grads[2] if ctx.has_bias else None, None, None


def _keep_pool_mix(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # only the first output has a gradient
    x, weight, bias, scale, drop, _, ctx.path = inputs
    ctx.save_for_backward(x, weight, bias, scale, drop, *output[1:])


def _pool_mix_gradients(ctx, grad, *_):
    if grad is None:
        return (None,) * 7
    x, weight, bias, scale, drop, mean, rstd = ctx.saved_tensors
    dx, dweight, dscale = _pool_mix_backward(grad, x, weight, scale, drop, mean, rstd, ctx.path)
    # Zeros rather than None: DDP waits for each parameter's gradient, and AdamW decays only those
    # that have one.
    dbias = None if bias is None else torch.zeros_like(bias)
    return dx, dweight, dbias, None if scale is None else dscale, None, None, None


def _keep_norm_mlp(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # only the first output has a gradient
    *tensors, _, ctx.dtype, _, ctx.path = inputs
    ctx.save_for_backward(*tensors, *output[1:])


def _norm_mlp_gradients(ctx, grad, *_):
    if grad is None:
        return (None,) * 13
    saved = ctx.saved_tensors
    grads = _norm_mlp_backward(grad, *saved, ctx.dtype, ctx.path)
    grads = [None if t is None else g for t, g in zip(saved[:8], grads, strict=True)]
    return *grads, None, None, None, None, None


_norm.register_autograd(_norm_gradients, setup_context=_keep_norm)
_pool_mix.register_autograd(_pool_mix_gradients, setup_context=_keep_pool_mix)
_norm_mlp.register_autograd(_norm_mlp_gradients, setup_context=_keep_norm_mlp)
