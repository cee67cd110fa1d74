"""Finding the images and videos that a user names, reading them whole, naming their results."""

from __future__ import annotations

import glob
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import mmcv
import numpy as np
import PIL.Image
import PIL.ImageOps
from numpy.typing import NDArray

from ..data.decoding import Decoder, Unreadable, read_image
from ..errors import UserError
from .windows import open_rows

# (H, W, 3), BGR.
Image = NDArray[np.uint8]
# What can be predicted: a file (of images also a folder or a pattern), or an image in memory.
Source: TypeAlias = 'str | os.PathLike[str] | NDArray[Any] | PIL.Image.Image'
# Takes a file, and why it can't be read.
OnUnreadable: TypeAlias = Callable[[Path, str], None]
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


@dataclass(frozen=True, eq=False)
class Frame:
    """An image to predict, and where it is from.

    Attributes:
        image: (H, W, 3), uint8, BGR, or as the decoder gives it.
        path: The file, None for an image in memory.
        number: Of a video's frame, from 0.
        remark: What was lost or odd when it was read, in words, else empty.
    """

    image: Image
    path: Path | None = None
    number: int | None = None
    remark: str = ''


def read_sources(
    sources: Source | Iterable[Source],
    decoder: Decoder,
    on_unreadable: OnUnreadable | None = None,
    ahead: int = 8,
    rows_from: int | None = None,
) -> Iterator[Frame]:
    """Read images and videos in order; files in threads, at most ``ahead`` before the caller.

    Decoding releases Python's lock, so the next files are read while the model runs.

    Args:
        sources: One, or any stream of them, which may be endless.
        decoder: How files are decoded.
        on_unreadable: Called for a file that can't be read, which is left out.
        ahead: How many files wait in memory.
        rows_from: TIFFs with a longer side than this, in pixels, are not read whole but by rows.

    Raises:
        UserError: A file can't be read and there is no ``on_unreadable``, or a source is of
            another kind.
    """

    def refuse(path: Path, reason: str) -> None:
        if on_unreadable is None:
            raise UserError(f'{path}: {reason}; with on_unreadable=FUNCTION it is left out')
        on_unreadable(path, reason)

    with ThreadPoolExecutor(2) as pool:
        waiting: deque[tuple[Path, Future[Frame]]] = deque()

        def read_next() -> Iterator[Frame]:
            path, future = waiting.popleft()
            try:
                yield future.result()
            except Unreadable as error:
                refuse(path, str(error))

        for source in _flat(sources, refuse):
            if isinstance(source, Path) and not is_video(source):
                waiting.append((source, pool.submit(_read_file, source, decoder, rows_from)))
                if len(waiting) > ahead:
                    yield from read_next()
                continue
            while waiting:
                yield from read_next()
            if not isinstance(source, Path):
                yield Frame(as_image(source, decoder))
                continue
            try:
                for number, image in enumerate(read_video(source)):
                    yield Frame(image, source, number)
            except Unreadable as error:
                refuse(source, str(error))
        while waiting:
            yield from read_next()


def _flat(
    sources: Source | Iterable[Source], refuse: OnUnreadable
) -> Iterator[Path | NDArray[Any] | PIL.Image.Image]:
    """Yield files and images; folders and patterns are searched."""
    if isinstance(sources, (str, os.PathLike)):
        paths, nothing = find_media([os.fspath(sources)])
        yield from paths
        for given, reason in nothing:
            refuse(Path(given), reason)
    elif isinstance(sources, PIL.Image.Image):
        yield sources
    elif isinstance(sources, np.ndarray):
        yield from sources if sources.ndim == 4 else [sources]
    elif isinstance(sources, Iterable):
        for source in sources:
            try:
                yield from _flat(source, refuse)
            except UserError as error:
                if not isinstance(source, (str, os.PathLike)):
                    raise
                refuse(Path(source), str(error).removeprefix(f'{source}: '))
    else:
        raise UserError(
            f'{type(sources).__name__} is no image: predict takes paths, numpy arrays (H, W, 3) of '
            'uint8 in the order BGR, PIL images, and streams of them'
        )


def as_image(source: NDArray[Any] | PIL.Image.Image, decoder: Decoder) -> Image:
    """Return an image in memory as a file of it would be read.

    Args:
        source: (H, W), (H, W, 1), BGR or BGRA, uint8; or a PIL image.
        decoder: Of which color_type ``color`` makes three channels of it.

    Raises:
        UserError: It has another shape or dtype.
    """
    if isinstance(source, PIL.Image.Image):
        turned = PIL.ImageOps.exif_transpose(source).convert('RGB')
        return np.ascontiguousarray(np.asarray(turned)[..., ::-1])
    known = source.ndim == 2 or (source.ndim == 3 and source.shape[2] in (1, 3, 4))
    if source.dtype != np.uint8 or not known or not source.size:
        raise UserError(
            f'an image in memory is {source.dtype} of shape {source.shape}: it must be uint8, '
            '0 to 255, of shape (H, W, 3) in the order BGR, or (H, W)'
        )
    return in_color(source) if decoder.color_type.startswith('color') else source


def in_color(image: NDArray[Any]) -> Image:
    """Return (H, W, 3), uint8, of an image as any decoder gives it."""
    if image.dtype != np.uint8:
        image = np.interp(image, (image.min(), image.max() + 1e-9), (0, 255)).astype(np.uint8)
    image = image.reshape(*image.shape[:2], -1)
    return image[..., :3] if image.shape[2] > 2 else image[..., :1].repeat(3, axis=2)


def _read_file(path: Path, decoder: Decoder, rows_from: int | None) -> Frame:
    if rows_from is not None and (rows := open_rows(path, decoder, rows_from)) is not None:
        return Frame(cast(Image, rows), path, remark=rows.remark)
    found = read_image(path, decoder)
    return Frame(found.pixels, path, remark=found.remark)


def _suffix(path: Path) -> str:
    return path.suffix.lower().removeprefix('.')
