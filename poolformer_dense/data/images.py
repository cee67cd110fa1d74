"""Image files: is each there, can it be read to its end, and how large is it."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
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

    OpenCV may fill what a truncated file lacks with gray and say nothing, so Pillow reads it.

    Args:
        path: The file.
        turn: Apply the EXIF orientation, as OpenCV does.

    Returns:
        (width, height) as the training sees it, and a note on the orientation, or None and what is
        wrong.
    """
    try:
        return _decode(Path(path).read_bytes(), turn)
    except Exception as error:  # Pillow's decoders raise many types on broken data
        return None, str(error).replace(path, '').strip() or type(error).__name__


def _decode(data: bytes, turn: bool) -> tuple[tuple[int, int] | None, str]:
    # A download that stopped may be filled up with zeros, which decode to gray.
    if data.startswith(b'\xff\xd8') and data.rfind(b'\xff\xd9') < data.rfind(b'\xff\xda'):
        return None, 'truncated: the JPEG has no end marker'
    try:
        image = Image.open(io.BytesIO(data))
    except Image.DecompressionBombError:  # beyond 179 million pixels; OpenCV reads more
        pixels = mmcv.imfrombytes(data, 'color' if turn else 'color_ignore_orientation')
        return pixels.shape[1::-1], ''
    size = image.size
    is_jpeg = image.format in _JPEG
    if is_jpeg:
        # Shrinking while decoding halves the time; the whole file is still read.
        image.draft('RGB', (size[0] // 8 or 1, size[1] // 8 or 1))
    image.load()
    if not is_jpeg and image.format != 'PNG' and mmcv.imfrombytes(data) is None:
        return None, f'OpenCV, which the training reads with, does not know {image.format}'
    orientation = image.getexif().get(_ORIENTATION) if is_jpeg and turn else None
    if orientation in (5, 6, 7, 8):
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


def read_all(function: Callable, items: Sequence, title: str) -> Iterator[Any]:
    """Apply a function that reads files to every item, in threads, under a bar of this title.

    Decoding releases Python's lock. Results come in order, and only a chunk of them waits.
    """
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # Pillow's, of large images and of broken metadata
        results = (
            result
            for start in range(0, len(items), _CHUNK)
            for result in pool.map(function, items[start : start + _CHUNK])
        )
        console = Console(stderr=True)
        yield from track(results, title, total=len(items), console=console, disable=not title)
