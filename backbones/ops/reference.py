"""The specification of the fused operators, in plain torch.

Every other path computes the same functions and the same gradients; tests/ops holds them to it.
Statistics are over (C, H, W) of each sample, as in `backbones.norms.ModifiedLayerNorm`.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def modified_layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise each sample over (C, H, W), then scale and shift each channel.

    Args:
        x: (B, C, H, W).
        weight: (C,).
        bias: (C,), or None for no shift.
        eps: Added to the variance.
    """
    return F.group_norm(x, 1, weight, bias, eps)


def pool_mix(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    drop: Tensor | None,
    eps: float,
) -> Tensor:
    """Add the pooling branch to its input: equation 2 of arXiv 2111.11418.

    Args:
        x: (B, C, H, W).
        weight: (C,), of the norm.
        bias: (C,), of the norm, or None. The branch does not depend on it: pooling minus the
            input cancels it. Its gradient is zero, not None.
        scale: (C,), layer scale, or None for 1.
        drop: (B,), drop path's factor of each sample, or None for 1.
        eps: Of the norm.
    """
    y = modified_layer_norm(x, weight, bias, eps)
    y = F.avg_pool2d(y, 3, stride=1, padding=1, count_include_pad=False) - y
    return x + _scaled(y, scale, drop)


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
) -> Tensor:
    """Add the channel MLP's branch to its input: equation 3 of arXiv 2111.11418.

    Args:
        x: (B, C, H, W).
        weight: (C,), of the norm.
        bias: (C,), of the norm, or None.
        w1: (E, C, 1, 1).
        b1: (E,) or None.
        w2: (C, E, 1, 1).
        b2: (C,) or None.
        scale: (C,), layer scale, or None for 1.
        drop: (B,), drop path's factor of each sample, or None for 1.
        eps: Of the norm.
    """
    y = F.conv2d(modified_layer_norm(x, weight, bias, eps), w1, b1)
    return x + _scaled(F.conv2d(F.gelu(y), w2, b2), scale, drop)


def _scaled(y: Tensor, scale: Tensor | None, drop: Tensor | None) -> Tensor:
    if scale is not None:
        y = y * scale.view(-1, 1, 1)
    if drop is not None:
        y = y * drop.to(y.dtype).view(-1, 1, 1, 1)
    return y
