"""Image files: is each there, can it be read to its end, and how large is it."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mmcv
from PIL import Image
from rich.console import Console
from rich.progress import track

_ORIENTATION = 0x0112
_JPEG = ('JPEG', 'MPO')
_CHUNK = 1024


def inspect_image(path: str, turn: bool = True) -> tuple[tuple[int, int] | None, str]:
    """Read an image to its end.

    OpenCV fills what a truncated file lacks with gray and says nothing, so Pillow reads it.

    Args:
        path: The file.
        turn: Apply the EXIF orientation, as OpenCV does.

    Returns:
        (width, height) as the training sees it, and a note on the orientation, or None and what is
        wrong.
    """
    try:
        data = Path(path).read_bytes()
        image = Image.open(io.BytesIO(data))
        size = image.size
        if image.format in _JPEG:
            # Shrinking while decoding halves the time; the whole file is still read.
            image.draft('RGB', (size[0] // 8, size[1] // 8))
            # A download that stopped may be filled up with zeros, which decode to gray.
            if data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
                return None, 'truncated: the JPEG has no end marker'
        image.load()
        orientation = image.getexif().get(_ORIENTATION) if image.format in _JPEG else None
    except Exception as error:  # Pillow's decoders raise many types on broken data
        return None, str(error).replace(path, '').strip() or type(error).__name__
    if image.format not in (*_JPEG, 'PNG') and mmcv.imfrombytes(data) is None:
        return None, f'OpenCV, which the training reads with, does not know {image.format}'
    if turn and orientation in (5, 6, 7, 8):
        return (size[1], size[0]), f' after its EXIF orientation {orientation} turned it'
    return size, ''


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


def read_all(function: Callable, items: Sequence, description: str) -> Iterator[Any]:
    """Apply a function that reads files to every item, in threads, with a progress bar.

    Decoding releases Python's lock. Results come in order, and only a chunk of them waits.
    """
    workers = len(os.sched_getaffinity(0))
    with _unlimited_pixels(), ThreadPoolExecutor(workers) as pool:
        results = (
            result
            for start in range(0, len(items), _CHUNK)
            for result in pool.map(function, items[start : start + _CHUNK])
        )
        yield from _tracked(results, len(items), description)


def _tracked(results: Iterable, total: int, description: str) -> Iterable:
    console = Console(stderr=True)
    return track(results, description, total=total, console=console, disable=not description)


@contextlib.contextmanager
def _unlimited_pixels() -> Iterator[None]:
    """Let Pillow open images beyond 179 million pixels, and keep its warnings to itself."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
