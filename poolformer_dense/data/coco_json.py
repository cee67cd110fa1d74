"""Reading COCO's JSON once: what was checked is what the data set is made of."""

from __future__ import annotations

import codecs
import gc
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_held: dict[tuple[str, int, int], Any] = {}  # one content at most, by its file's path, time, size


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file of any Unicode encoding.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It is nested too deeply.
    """
    with no_collector():
        try:
            # Text alone in memory beside the content, where the file is what pycocotools can read.
            with open(path, encoding='utf-8') as file:
                return json.load(file)
        except ValueError:
            with open(path, 'rb') as raw:
                return json.loads(raw.read())


def is_plain_text(path: str | os.PathLike[str]) -> bool:
    """Whether a file is UTF-8 without a byte-order mark, as far as its first bytes tell."""
    with open(path, 'rb') as file:
        start = file.read(4)
    return not start.startswith((codecs.BOM_UTF8, codecs.BOM_LE, codecs.BOM_BE)) and 0 not in start


def hold_json(path: str | os.PathLike[str], content: Any) -> None:
    """Keep a file's content for the data set that will ask for it; the largest file's alone."""
    key = _key(path)
    if all(key[-1] > size for *_, size in _held):
        _held.clear()
        _held[key] = content


def take_json(path: str | os.PathLike[str]) -> Any:
    """Return a file's content, parsed or held since; it is held no longer."""
    held = _held.pop(_key(path), None)
    return read_json(path) if held is None else held


def _key(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.path.realpath(path), status.st_mtime_ns, status.st_size


@contextmanager
def no_collector() -> Iterator[None]:
    """Halve the time that parsing takes: the collector would visit every list again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
