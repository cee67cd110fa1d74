"""Token mixers: each maps (B, C, H, W) to (B, C, H, W)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Pooling(nn.Module):
    """Average pooling minus its input (arXiv 2111.11418, equation 4 and algorithm 1).

    The block around it adds its input back, so the mixer subtracts it. The border averages over
    the pixels that exist, hence a constant map is mapped to zero.

    Args:
        pool_size: Odd side of the window, in pixels.
    """

    def __init__(self, pool_size: int = 3) -> None:
        super().__init__()
        if pool_size < 1 or pool_size % 2 == 0:
            raise ValueError(f'pool_size must be a positive odd integer, got {pool_size}')
        self.pool_size = pool_size

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(
            x, self.pool_size, stride=1, padding=self.pool_size // 2, count_include_pad=False
        )
        return pooled - x

    def extra_repr(self) -> str:
        return f'pool_size={self.pool_size}'
