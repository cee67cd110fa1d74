"""What the processes of a run decide together."""

from __future__ import annotations

from collections.abc import Callable

import torch
from mmengine.dist import all_reduce, broadcast_object_list, get_world_size, is_main_process

from .waiting import main_busy


class SaveFailed(Exception):
    """A file could not be written; raised on every rank."""


def any_rank(flag: bool) -> bool:
    """Whether a flag is set on any rank; all ranks must call it."""
    return bool(greatest(flag))


def greatest(number: int) -> int:
    """The largest of a number over the ranks; all ranks must call it."""
    if get_world_size() == 1:
        return number
    numbers = torch.tensor([number])
    all_reduce(numbers, op='max')
    return int(numbers.item())


def least(number: int) -> int:
    """The smallest of a number over the ranks; all ranks must call it."""
    numbers = torch.tensor([number])
    all_reduce(numbers, op='min')
    return int(numbers.item())


def write_on_main(name: str, write: Callable[[], None]) -> None:
    """Write a file on the main rank; all ranks must call it.

    Args:
        name: Of the file, for the message.
        write: Writes it.

    Raises:
        SaveFailed: On all ranks, if it raised OSError.
    """
    failure = None
    with main_busy(f'saving {name}'):
        if is_main_process():
            try:
                write()
            except OSError as error:
                failure = f'{name} could not be saved ({error})'
        failures = [failure]
        broadcast_object_list(failures)
    if failures[0]:
        raise SaveFailed(failures[0])
