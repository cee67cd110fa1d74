"""What the processes of a run decide together."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import (
    all_gather_object,
    all_reduce,
    broadcast_object_list,
    get_world_size,
    is_main_process,
)

from backbones.checkpoints import CheckpointError

from ..errors import UserError
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


def from_main(value: Any) -> Any:
    """The main rank's value; all ranks must call it."""
    values = [value]
    broadcast_object_list(values)
    return values[0]


@contextmanager
def failing_together() -> Iterator[None]:
    """A user's error within the block, on any rank, is raised on all; all ranks must enter it.

    Raises:
        UserError: One was raised on some ranks; its line says on which hosts, unless on all.
    """
    failure = None
    try:
        yield
    except (UserError, CheckpointError) as error:
        if get_world_size() == 1:
            raise
        failure = str(error)
    failures = all_gather_object((socket.gethostname(), failure))
    told = {text for _, text in failures}
    if told != {None}:
        raise UserError(failure if failure and len(told) == 1 else by_host(failures))


def by_host(facts: Sequence[tuple[str, str | None]]) -> str:
    """Say in one line what holds on which host.

    Args:
        facts: Of each rank, its host and what holds there, or None.
    """
    ranks: dict[tuple[str, str], list[int]] = {}
    for rank, (host, text) in enumerate(facts):
        if text is not None:
            ranks.setdefault((host, text), []).append(rank)
    return '; '.join(f'{host} ({_numbers(own)}): {text}' for (host, text), own in ranks.items())


def _numbers(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f'rank {ranks[0]}'
    gapless = ranks[-1] - ranks[0] == len(ranks) - 1
    return f'ranks {ranks[0]}-{ranks[-1]}' if gapless else f'ranks {", ".join(map(str, ranks))}'


def hosts_without(folder: str | os.PathLike[str]) -> list[str]:
    """Hosts where a path is not the main rank's folder; all ranks must call it.

    The main rank puts a file there, and the others look for it. Where it can't be written, nothing
    can be told.

    Args:
        folder: Each rank's own.
    """
    if get_world_size() == 1:
        return []
    # A name that no network file system can know of, as one that is there or not.
    token = Path(folder, f'.seen-by-all-{uuid.uuid4().hex}') if is_main_process() else None
    name = None
    if token is not None:
        with suppress(OSError):
            token.touch()
            name = token.name
    name = from_main(name)
    sees = name is None or Path(folder, name).exists()
    told = all_gather_object((socket.gethostname(), sees))
    if token is not None:
        token.unlink(missing_ok=True)
    return list(dict.fromkeys(host for host, seen in told if not seen))
