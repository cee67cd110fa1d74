"""Finding the images and videos that a user names, reading them whole, naming their results."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

import mmcv
import numpy as np
import PIL.Image
from numpy.typing import NDArray

from ..data.decoding import Decoded, Decoder, Unreadable, read_image
from ..errors import UserError

# (H, W, 3), BGR.
Image = NDArray[np.uint8]
# What a folder is searched for.
_READ = 'jpg jpeg jpe jfif png apng bmp dib tif tiff webp gif avif jp2 ppm pgm pbm pnm hdr ras sr'
_NAMED = 'heic heif jxl exr tga psd dng'  # images that can't be read, rather than other files
_VIDEOS = 'mp4 avi mov mkv webm m4v mpg mpeg wmv flv 3gp'


def find_media(
    inputs: Sequence[str], leave_out: Path | None = None
) -> tuple[list[Path], list[tuple[str, str]]]:
    """List the files that inputs name, each once, in order.

    Args:
        inputs: Files, folders (with all their subfolders) and patterns, in which ``**`` matches
            any folders.
        leave_out: A folder to skip: where results go.

    Returns:
        The files; and each input without a file, with the reason.

    Raises:
        UserError: No input has a file.
    """
    found: dict[str, Path] = {}
    nothing: list[tuple[str, str]] = []
    for given in inputs:
        if os.path.isdir(given):
            paths = [path for path in sorted(Path(given).rglob('*')) if _is_media(path)]
            lost = [path for path in paths if path.is_symlink() and not path.exists()]
            nothing += [(str(path), 'it is a link to nothing') for path in lost]
            reason = 'no image or video is in this folder'
        elif os.path.exists(given):
            paths, reason = [Path(given)], 'it is neither a file nor a folder'
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
    return _suffix(path) in _VIDEOS.split()


def _is_media(path: Path) -> bool:
    """Whether a file of a folder is to be read; one without suffix tells it by its content."""
    if path.suffix:
        return _suffix(path) in f'{_READ} {_NAMED} {_VIDEOS}'.split()
    try:
        with PIL.Image.open(path):
            return True
    except Exception:  # of any kind, on files of other kinds
        return False


def distinct_names(paths: Sequence[Path]) -> list[Path]:
    """Return a unique name for each file: its path without suffix, from the folder common to all.

    Files of one folder that differ in the suffix alone keep it.
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


def read_video(path: Path) -> Iterator[Image]:
    """Yield the frames of a video, (H, W, 3) uint8, BGR.

    Raises:
        Unreadable: It has not one frame that OpenCV can decode.
    """
    if path.stat().st_size == 0:
        raise Unreadable('the file is empty')
    frame = None
    with mmcv.VideoReader(str(path)) as video:
        for frame in video:
            yield frame
    if frame is None:
        raise Unreadable('OpenCV finds no frame in it')


def describe_video(path: Path) -> tuple[int, float]:
    """Return what a video says of itself: frames (0 if unknown) and frames per second."""
    with mmcv.VideoReader(str(path)) as video:
        return max(video.frame_cnt, 0), video.fps if 0 < video.fps < 1000 else 25.0


def read_ahead(
    paths: Iterable[Path], decoder: Decoder, waiting: int = 8
) -> Iterator[tuple[Path, Decoded | Unreadable]]:
    """Read images in threads, in order, at most ``waiting`` ahead of the caller.

    Decoding releases Python's lock, so the next images are read while the model runs.
    """
    paths = iter(paths)
    read = partial(_try_read, decoder=decoder)
    with ThreadPoolExecutor(2) as pool:
        results = deque(pool.submit(read, path) for path in islice(paths, waiting))
        while results:
            result = results.popleft().result()
            results.extend(pool.submit(read, path) for path in islice(paths, 1))
            yield result


def _try_read(path: Path, decoder: Decoder) -> tuple[Path, Decoded | Unreadable]:
    try:
        return path, read_image(path, decoder)
    except Unreadable as error:
        return path, error


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix('.')
