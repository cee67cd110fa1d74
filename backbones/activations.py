"""Activations of the channel MLP and of the separable convolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmengine.registry import Registry
from torch import Tensor, nn

ACTIVATIONS = Registry('activation')
for _module in (nn.GELU, nn.ReLU, nn.SiLU):
    ACTIVATIONS.register_module(module=_module)


@ACTIVATIONS.register_module()
class SquaredReLU(nn.Module):
    """The square of ReLU (arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


@ACTIVATIONS.register_module()
class StarReLU(nn.Module):
    """``scale * relu(x)^2 + bias`` with two learned scalars (arXiv 2210.13452, section 2.3)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * F.relu(x).square() + self.bias
