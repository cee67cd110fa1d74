"""Image files in numbers: which are missing, and reading all of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.progress import track

from .decoding import quiet_decoders

_CHUNK = 1024


def missing_files(paths: Sequence[str]) -> list[bool]:
    """Return for each path whether there is no such file; each folder is listed once."""
    folders: dict[str, set[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in folders:
            try:
                folders[folder] = set(os.listdir(folder or '.'))
            except OSError:
                folders[folder] = set()
        missing.append(name not in folders[folder] and not os.path.isfile(path))
    return missing


def read_all(function: Callable, items: Sequence, title: str) -> Iterator[Any]:
    """Apply a function that reads files to every item, in threads, under a bar of this title.

    Decoding releases Python's lock. Results come in order, and only a chunk of them waits.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, quiet_decoders():
        results = (
            result
            for start in range(0, len(items), _CHUNK)
            for result in pool.map(function, items[start : start + _CHUNK])
        )
        console = Console(stderr=True)
        yield from track(results, title, total=len(items), console=console, disable=not title)
