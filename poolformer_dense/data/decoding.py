"""What the training sees of an image file, and whether the file is whole.

Training, prediction and verification judge files by what is here, so they agree.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from .signatures import other_kind, tiff_samples

_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_TURNED = ' after its EXIF orientation {} turned it'
_ASSERTION = -215  # cv2.Error.StsAssert
_JPEG = ('JPEG', 'MPO')
_JPEG_START, _JPEG_SCAN, _JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'
# Files of 10, 12 or 14 bits in samples of 16 are no brighter than this once they have 8.
_DARK = 64
# Values of an image that is not decoded twice to learn what is lost.
_LARGE = 2**28
# Tag of a TIFF: kind of page.
_PAGE = 254


class Unreadable(Exception):
    """A file can't be read to its end, or not as the pipeline asks; the message says why."""


@dataclass(frozen=True)
class Decoder:
    """How a pipeline's ``LoadImageFromFile`` decodes files.

    Attributes:
        color_type: Its argument of this name.
        imdecode_backend: Its argument of this name.
    """

    color_type: str = 'color'
    imdecode_backend: str = 'cv2'

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Decoder:
        """Return that of a step with these arguments, among others; None is the default."""
        given = {key: arguments.get(key) for key in ('color_type', 'imdecode_backend')}
        return cls(**{key: value for key, value in given.items() if value is not None})

    @property
    def turns(self) -> bool:
        """Whether an image is turned as its EXIF orientation says."""
        ignored = self.color_type == 'unchanged' or self.color_type.endswith('ignore_orientation')
        return self.imdecode_backend in ('cv2', 'pillow') and not ignored

    def decode(self, data: bytes) -> NDArray[Any] | None:
        """Return the pixels as the training gets them, or None if the backend knows no such file.

        Raises:
            Exception: Of any kind, as decoders do on broken data.
        """
        backend = self.imdecode_backend
        pixels: NDArray[Any] | None = mmcv.imfrombytes(data, self.color_type, backend=backend)
        colored = self.color_type.startswith('color') and backend != 'tifffile'
        return None if colored and pixels is not None and pixels.shape[2:] != (3,) else pixels


COLOR = Decoder()


@dataclass(frozen=True)
class Decoded:
    """What the training gets of a file.

    Attributes:
        pixels: (H, W, 3), uint8, BGR, unless the decoder says otherwise.
        remark: What is lost or odd, in words, else empty.
        turned: A note on the EXIF orientation, if it changed the size.
    """

    pixels: NDArray[Any]
    remark: str = ''
    turned: str = ''


def read_image(path: str | Path, decoder: Decoder = COLOR) -> Decoded:
    """Read an image as the training does, if it is whole.

    Raises:
        Unreadable: It is no image, truncated, or of a kind that the decoder does not know.
    """
    data = _content(path)
    header = _verify(data)
    return _decode(path, data, header, decoder)


class Inspected(NamedTuple):
    """A file as `inspect_image` judges it.

    Attributes:
        size: (width, height) as the training sees it, or None if the file can't be read.
        note: Why not; else a note on the EXIF orientation, if it changed the size.
        remark: What is lost or odd, in words, else empty.
    """

    size: tuple[int, int] | None
    note: str = ''
    remark: str = ''


def inspect_image(path: str, decoder: Decoder = COLOR) -> Inspected:
    """Judge an image as `read_image` does, in less time."""
    try:
        data = _content(path)
        header = _verify(data)
        # Pillow has read a JPEG to its end by the library that OpenCV uses.
        if header and header.format in _JPEG and decoder.imdecode_backend != 'tifffile':
            turn = header.orientation
            if decoder.turns and turn in _SIDEWAYS:
                return Inspected(header.size[::-1], _TURNED.format(turn))
            return Inspected(header.size)
        found = _decode(path, data, header, decoder)
    except Unreadable as error:
        return Inspected(None, str(error))
    height, width = found.pixels.shape[:2]
    return Inspected((width, height), found.turned, found.remark)


def is_cut_jpeg(path: str) -> bool:
    """Whether a file is a JPEG that ends too early, in little more time than opening it takes."""
    try:
        with open(path, 'rb') as file:
            if file.read(2) != _JPEG_START:
                return False
            file.seek(-2, os.SEEK_END)
            if file.read() == _JPEG_END:
                return False
            file.seek(0)
            return _is_cut(file.read())
    except OSError:  # not a local file
        return False


def _is_cut(data: bytes) -> bool:
    # A download that stopped may be filled up with zeros; OpenCV makes gray of what is missing.
    return data.startswith(_JPEG_START) and data.rfind(_JPEG_END) < data.rfind(_JPEG_SCAN)


@dataclass(frozen=True)
class _Header:
    """What Pillow says of a file that it has read to the end."""

    format: str
    mode: str
    size: tuple[int, int]
    orientation: int | None
    pages: int
    damage: str  # what is wrong with pages other than the first


def _content(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or type(error).__name__) from error
    if not data:
        raise Unreadable('the file is empty')
    return data


def _verify(data: bytes) -> _Header | None:
    """Read a file to its end by Pillow; return None if that does not know it.

    OpenCV may fill what a truncated file lacks with gray and say nothing.
    """
    if _is_cut(data):
        raise Unreadable('truncated: the JPEG has no end marker')
    try:
        image = Image.open(io.BytesIO(data))
        kind, mode, size = image.format or '', image.mode, image.size
    except Exception:  # Pillow's decoders raise many types; more than 179 million pixels are one
        return None
    try:
        if kind in _JPEG:
            # Shrinking while decoding halves the time; the whole file is still read.
            image.draft('RGB', (size[0] // 8 or 1, size[1] // 8 or 1))
        image.load()
    except (OSError, SyntaxError, EOFError, IndexError) as error:
        raise Unreadable(_one_line(error)) from error
    except Exception:  # of metadata, which do not matter to the decoder
        return None
    pages, damage = _pages(image)
    return _Header(kind, mode, size, _orientation(image), pages, damage)


def _decode(path: str | Path, data: bytes, header: _Header | None, decoder: Decoder) -> Decoded:
    try:
        pixels = decoder.decode(data)
        problem = ''
    except Exception as error:
        pixels, problem = None, _one_line(error)
    if pixels is None:
        raise Unreadable(_reason(path, data, header, decoder, problem))
    remarks = []
    if header and header.pages > 1:
        damage = f' (the others are damaged: {header.damage})' if header.damage else ''
        remarks.append(f'only the first of its {header.pages} frames or pages is read{damage}')
    unknown = header is None and pixels.size < _LARGE
    reduced = pixels.dtype == np.uint8 and decoder.color_type != 'unchanged'
    if reduced and (unknown or pixels.max(initial=0) < _DARK):
        remarks += _lost_depth(data)
    size, turn = pixels.shape[1::-1], header and header.orientation
    turned = ''
    if header and size == header.size[::-1] != header.size:
        turned = _TURNED.format(turn)
    elif decoder.turns and turn in _SIDEWAYS and size[0] != size[1]:
        remarks.append(f'its EXIF orientation {turn} is ignored, as OpenCV does for such files')
    return Decoded(pixels, '; '.join(remarks), turned)


def _lost_depth(data: bytes) -> list[str]:
    try:
        whole = mmcv.imfrombytes(data, 'unchanged')
    except Exception:
        return []
    if whole is None:
        return []
    if whole.dtype == np.uint16:
        return [
            f'it has 16 bits a sample, of which the upper 8 are read, and its largest value is '
            f'{whole.max():,} of 65,535, so it is almost black; scale it to 8 bits'
        ]
    if whole.dtype.kind == 'f':
        return ['it has floating-point samples, which OpenCV maps to 8 bits in a way of its own']
    return []


def _pages(image: Image.Image) -> tuple[int, str]:
    """How many pictures there are beside previews, and why they can't all be counted."""
    count = 1
    try:
        count = getattr(image, 'n_frames', 1)
        if image.format in _JPEG:  # cameras add previews
            return 1, ''
        if count > 1 and isinstance(image, TiffImagePlugin.TiffImageFile):
            kinds = []
            for page in range(count):  # a pyramid has smaller copies, a photograph its mask
                image.seek(page)
                kinds.append(image.tag_v2.get(_PAGE, 0) & 5)
            count = max(1, kinds.count(0))
        elif count > 1:
            image.seek(count - 1)
            image.load()
    except (IndexError, EOFError, struct.error):
        return max(count, 2), 'the file ends too early'
    except Exception as error:
        return max(count, 2), _one_line(error)
    return count, ''


def _orientation(image: Image.Image) -> int | None:
    try:
        found = image.getexif().get(_ORIENTATION)
    except Exception:  # broken metadata, which OpenCV ignores
        return None
    return found if isinstance(found, int) else None


def _reason(
    path: str | Path, data: bytes, header: _Header | None, decoder: Decoder, problem: str
) -> str:
    """Why a file that Pillow does not refuse can't be decoded."""
    if what := other_kind(data):
        return f'it is {what}'
    if header and header.damage:
        return f'truncated or damaged: {header.damage}'
    reader = decoder.imdecode_backend
    if reader == 'cv2':
        reader = f'OpenCV {cv2.__version__}'
    what = tiff_samples(data)
    if header and not what:
        what = f'{header.format} of mode {header.mode}, {header.size[0]}x{header.size[1]}'
    if what or problem:
        said = ': '.join(filter(None, [what, problem]))
        return f'{reader}, which the training reads with, can not decode it ({said})'
    if cv2.haveImageReader(str(path)):
        return 'truncated or damaged'
    return f'neither {reader} nor Pillow knows this kind of file'


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, cv2.error) and error.err:
        text = f'it demands {error.err}' if error.code == _ASSERTION else error.err
    return ' '.join(text.split()) or type(error).__name__


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Keep to themselves what Pillow and OpenCV print of broken files; we say it once."""
    level = cv2.setLogLevel(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # Pillow's, of large images and of broken metadata
            yield
    finally:
        cv2.setLogLevel(level)
