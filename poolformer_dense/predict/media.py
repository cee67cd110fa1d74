"""Images and videos that a user names: found, read to their end, and given names that differ."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

import cv2
import mmcv
import numpy as np

from ..data.images import inspect_image
from ..errors import UserError

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
Item = TypeVar('Item')
Result = TypeVar('Result')


class Unreadable(Exception):
    """A file is not an image or video that can be read to its end; the message says why."""


def find_media(inputs: Sequence[str], leave_out: Path | None = None) -> tuple[list[Path], list]:
    """List the files that inputs stand for, each once, in order.

    Args:
        inputs: Files, folders (searched to the bottom for images and videos) and patterns, in
            which ``**`` stands for any folders.
        leave_out: A folder inside the inputs to pass over: where results go.

    Returns:
        The files, and for each input that stands for none its name and why.

    Raises:
        UserError: No input stands for a file.
    """
    found: dict[str, Path] = {}
    nothing = []
    for given in inputs:
        if os.path.isdir(given):
            paths = [p for p in sorted(Path(given).rglob('*')) if _suffix(p) in IMAGES + VIDEOS]
            reason = 'no image or video is in this folder'
        elif os.path.exists(given):
            paths, reason = [Path(given)], ''
        elif glob.has_magic(given):
            paths = [Path(path) for path in sorted(glob.glob(given, recursive=True))]
            reason = 'no file matches this pattern'
        else:
            paths, reason = [], 'it does not exist'
        if leave_out is not None:
            paths = [p for p in paths if not p.absolute().is_relative_to(leave_out.absolute())]
        paths = [path for path in paths if path.is_file()]
        found.update((os.path.abspath(path), path) for path in paths)
        if not paths:
            nothing.append((given, reason))
    if not found:
        raise UserError('; '.join(f'{given}: {reason}' for given, reason in nothing))
    return list(found.values()), nothing


def is_video(path: Path) -> bool:
    """Whether a file's name says that it is a video."""
    return _suffix(path) in VIDEOS


def distinct_names(paths: Sequence[Path]) -> list[Path]:
    """Name what belongs to each file: its path without suffix, from the folder common to all.

    Files of one folder that differ in the suffix alone keep it, so that no two names are equal.
    """
    absolute = [Path(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath([path.parent for path in absolute])
    relative = [path.relative_to(common) for path in absolute]
    stems = Counter(str(path.with_suffix('')).lower() for path in relative)
    whole = {str(path).lower() for path in relative}

    def name(path: Path) -> Path:
        stem = path.with_suffix('')
        shared = stems[str(stem).lower()] > 1
        return path if shared or (path != stem and str(stem).lower() in whole) else stem

    return [name(path) for path in relative]


def read_image(path: Path) -> np.ndarray:
    """Read an image whole, upright, as (H, W, 3) uint8, BGR.

    Raises:
        Unreadable: It is no image, or truncated.
    """
    try:
        size, reason = inspect_image(str(path))
        image = None if size is None else mmcv.imfrombytes(path.read_bytes())
    except (OSError, cv2.error) as error:
        raise Unreadable(str(error)) from error
    if image is None:
        # Pillow's message quotes the buffer that it was given.
        reason = ' '.join(re.sub(r'<.*>', '', reason).split())
        raise Unreadable(reason or 'OpenCV can not decode it')
    return image


def read_video(path: Path) -> Iterator[np.ndarray]:
    """Yield the frames of a video, (H, W, 3) uint8, BGR.

    Raises:
        Unreadable: It has not one frame that OpenCV can decode.
    """
    capture = cv2.VideoCapture(str(path))
    try:
        read, frame = capture.read()
        if not read:
            raise Unreadable('OpenCV finds no frame in it')
        while read:
            yield frame
            read, frame = capture.read()
    finally:
        capture.release()


def describe_video(path: Path) -> tuple[int, float]:
    """Return what a video says of itself: frames (0 if unknown) and frames per second."""
    capture = cv2.VideoCapture(str(path))
    try:
        frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        rate = capture.get(cv2.CAP_PROP_FPS)
    finally:
        capture.release()
    return max(frames, 0), rate if 0 < rate < 1000 else 25.0


def ahead(
    function: Callable[[Item], Result], items: Iterable[Item], waiting: int = 8
) -> Iterator[Result]:
    """Apply a function in threads, in order, with only some results waiting.

    Reading and decoding release Python's lock, so the next images are read while the model runs.
    """
    items = iter(items)
    with ThreadPoolExecutor(2) as pool:
        results = deque(pool.submit(function, item) for item in islice(items, waiting))
        while results:
            result = results.popleft().result()
            results.extend(pool.submit(function, item) for item in islice(items, 1))
            yield result


def _suffix(path: Path) -> str:
    return path.suffix.lower()
