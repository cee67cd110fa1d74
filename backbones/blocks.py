"""The MetaFormer block and its parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ModifiedLayerNorm(nn.GroupNorm):
    """Normalisation over (C, H, W) of each sample, affine per channel (arXiv 2111.11418, 4.1).

    Its statistics see every pixel, padding included, so a batch padded to a common size gives
    slightly other features than each image alone.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(num_groups=1, num_channels=dim, eps=1e-5)


class LayerScale(nn.Module):
    """A learned factor per channel (arXiv 2103.17239)."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.view(-1, 1, 1)


class DropPath(nn.Module):
    """Drops the residual branch of a whole sample while training (arXiv 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f'rate={self.rate:.4g}'


class ChannelMLP(nn.Module):
    """Two 1x1 convolutions with a GELU between; weights start as truncated normal, std 0.02."""

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.fc1 = nn.Conv2d(dim, hidden, kernel_size=1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, kernel_size=1)
        for conv in (self.fc1, self.fc2):
            nn.init.trunc_normal_(conv.weight, std=0.02)
            nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class MetaFormerBlock(nn.Module):
    """One block: token mixer and channel MLP, each normalised first and added to its input.

    Equations 2 and 3 of arXiv 2111.11418, with layer scale and drop path on both branches.

    Args:
        dim: Channels C.
        token_mixer: A module that maps (B, C, H, W) to (B, C, H, W).
        mlp_ratio: Hidden channels of the MLP over C.
        layer_scale_init: Initial value of both layer scales.
        drop_path: Probability that a sample skips a branch, in [0, 1).
    """

    def __init__(
        self,
        dim: int,
        token_mixer: nn.Module,
        mlp_ratio: float,
        layer_scale_init: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.norm1 = ModifiedLayerNorm(dim)
        self.token_mixer = token_mixer
        self.layer_scale1 = LayerScale(dim, layer_scale_init)
        self.norm2 = ModifiedLayerNorm(dim)
        self.mlp = ChannelMLP(dim, mlp_ratio)
        self.layer_scale2 = LayerScale(dim, layer_scale_init)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.layer_scale1(self.token_mixer(self.norm1(x))))
        x = x + self.drop_path(self.layer_scale2(self.mlp(self.norm2(x))))
        return x  # (B, C, H, W)
