"""Progress bars of what takes long: bytes on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def byte_bar(title: str, total: int | None = None) -> Iterator[Callable[..., None]]:
    """Show a bar; the function yielded takes ``advance``, ``completed`` and ``total`` in bytes."""
    columns = [
        TextColumn('{task.description}'),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield partial(progress.update, progress.add_task(title, total=total))
