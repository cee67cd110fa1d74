"""What the processes of a run decide together."""

from __future__ import annotations

import torch
from mmengine.dist import all_reduce, get_world_size


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank; all ranks must call it."""
    if get_world_size() == 1:
        return flag
    flags = torch.tensor([int(flag)])
    all_reduce(flags, op='max')
    return bool(flags.item())


def least(number: int) -> int:
    """The smallest of a number over the ranks; all ranks must call it."""
    numbers = torch.tensor([number])
    all_reduce(numbers, op='min')
    return int(numbers.item())
