"""Normalisation layers: each maps (B, C, H, W) to (B, C, H, W)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn

from . import ops

NORMS = Registry('norm')


@NORMS.register_module()
class ModifiedLayerNorm(nn.GroupNorm):
    """Normalisation over (C, H, W) of each sample, affine per channel (arXiv 2111.11418, 4.1).

    Its statistics see every pixel, padding included, so a batch padded to a common size gives
    slightly other features than each image alone.

    Args:
        dim: Channels C.
        eps: Added to the variance.
        bias: Whether each channel has a learned shift.

    Attributes:
        backend: As in `backbones.ops.use_backend`.
    """

    backend = 'auto'

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__(num_groups=1, num_channels=dim, eps=eps)
        if not bias:
            self.register_parameter('bias', None)

    def forward(self, x: Tensor) -> Tensor:
        return ops.modified_layer_norm(x, self.weight, self.bias, self.eps, self.backend)


@NORMS.register_module()
class ChannelLayerNorm(nn.Module):
    """Layer norm over the channels of each pixel (arXiv 1607.06450).

    Args:
        dim: Channels C.
        eps: Added to the variance.
        bias: Whether each channel has a learned shift.
    """

    def __init__(self, dim: int, eps: float = 1e-5, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if bias else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # layer_norm works on the last dimension
        x = F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        return ops.plain_layout(x.permute(0, 3, 1, 2))

    def extra_repr(self) -> str:
        return f'{self.weight.numel()}, eps={self.eps}, bias={self.bias is not None}'


@NORMS.register_module()
class BatchNorm(nn.BatchNorm2d):
    """Batch norm (arXiv 1502.03167); ``sync_bn='torch'`` in a config synchronises it."""


@NORMS.register_module()
class NoNorm(nn.Identity):
    """No normalisation."""
