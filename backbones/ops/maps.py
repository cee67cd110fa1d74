"""Maps (B, C, H, W) in channels-last order, which makes them lists of tokens (T, C), T = B*H*W."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Statistics(NamedTuple):
    """Mean and ``1 / sqrt(variance + eps)`` of each sample, (B,), at least in float32."""

    mean: Tensor
    rstd: Tensor


def stream(x: Tensor) -> Tensor:
    """The residual stream: channels-last, in `stream_dtype`."""
    dtype = stream_dtype(x)
    return channels_last(x if x.dtype == dtype else x.to(dtype))


def stream_dtype(x: Tensor) -> torch.dtype:
    """The dtype of norms and residual sums: under autocast float32 at least."""
    return wide(x.dtype) if torch.is_autocast_enabled(x.device.type) else x.dtype


def channels_last(x: Tensor) -> Tensor:
    """The map with channels next to each other; a copy only if they weren't."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_map(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A channels-last map like x, uninitialised."""
    return torch.empty_like(x, dtype=dtype, memory_format=torch.channels_last)


def tokens(x: Tensor) -> Tensor:
    """A channels-last map as (T, C), without a copy."""
    return x.permute(0, 2, 3, 1).view(-1, x.shape[1])


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype of statistics and sums: float32 at least."""
    return torch.promote_types(dtype, torch.float32)
