"""Large TIFF files, read by rows instead of whole."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..data.decoding import Decoder, Unreadable
from ..errors import UserError

_GRAY, _RGB = 1, 2  # a TIFF's photometric interpretations


class TiffRows:
    """The first page of a TIFF; ``rows[a:b]`` reads rows of pixels, (b - a, W, 3), uint8, BGR.

    ``numpy.asarray`` reads the whole. Threads take turns.

    Args:
        path: The file.

    Raises:
        Unreadable: The file is truncated.
        ValueError: It is of a kind that is not read by rows.
    """

    ndim = 3
    dtype = np.dtype(np.uint8)

    def __init__(self, path: Path) -> None:
        import tifffile

        self.path = path
        self._lock = threading.Lock()
        try:
            self._file = tifffile.TiffFile(path)
            self._page: Any = self._file.pages[0]
        except Exception as error:  # of many kinds, on broken files
            raise ValueError(str(error)) from error
        page: Any = self._page
        samples = page.samplesperpixel
        plain = (
            page.dtype == np.uint8
            and (page.photometric, samples) in ((_GRAY, 1), (_RGB, 3))
            and page.planarconfig == 1
            and page.imagedepth == 1
            and page.tags.valueof('Orientation', 1) == 1
        )
        if not plain:
            raise ValueError('another kind of TIFF')
        ends = zip(page.dataoffsets, page.databytecounts, strict=True)
        if max((start + count for start, count in ends), default=0) > path.stat().st_size:
            raise Unreadable('the file is truncated')
        self.shape: tuple[int, int, int] = (page.imagelength, page.imagewidth, 3)
        others = [p for p in self._file.pages[1:] if not p.aspage().is_reduced]
        self.remark = ''
        if others:
            self.remark = f'only the first of its {len(others) + 1} frames or pages is read'
        try:
            self._read(0, 1)
        except Exception as error:  # also where a package for its compression is missing
            raise ValueError(str(error)) from error

    @property
    def size(self) -> int:
        """How many values it has."""
        return self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.uint8]:
        first, last, _ = rows.indices(len(self))
        try:
            found = self._read(first, last)
        except Exception as error:  # of many kinds, on broken files
            raise UserError(f'{self.path}: rows {first} to {last} are damaged ({error})') from error
        wide = found if found.shape[2] == 3 else found.repeat(3, axis=2)
        return np.ascontiguousarray(wide[:, :, ::-1])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self[:], dtype)

    def _read(self, first: int, last: int) -> NDArray[np.uint8]:
        page = self._page
        width, samples = page.imagewidth, page.samplesperpixel
        out = np.zeros((max(last - first, 0), width, samples), np.uint8)
        if page.is_contiguous:
            line = width * samples
            data = self._bytes(page.dataoffsets[0] + first * line, out.size)
            return np.frombuffer(data, np.uint8).reshape(out.shape)
        length = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
        across = -(-width // page.tilewidth) if page.is_tiled else 1
        for row in range(first // length, -(-last // length)):
            for index in range(row * across, (row + 1) * across):
                data = self._bytes(page.dataoffsets[index], page.databytecounts[index])
                if not data:
                    continue  # tifffile leaves empty parts 0 too
                tables = {'jpegtables': page.jpegtables} if page.jpegtables else {}
                part, (_, _, top, left, _), (_, height, w, _) = page.decode(data, index, **tables)
                w = min(w, width - left)
                start, stop = max(top, first), min(top + height, last)
                out[start - first : stop - first, left : left + w] = part[
                    0, start - top : stop - top, :w
                ]
        return out

    def _bytes(self, offset: int, count: int) -> bytes:
        with self._lock:
            self._file.filehandle.seek(offset)
            data: bytes = self._file.filehandle.read(count)
        return data


def open_rows(path: Path, decoder: Decoder, least: int) -> TiffRows | None:
    """Return a TIFF to be read by rows; None if it is to be decoded whole, as other files.

    Args:
        path: A file.
        decoder: How it would be decoded whole; by rows as OpenCV does, in color.
        least: Pixels of both sides from which on it is read by rows.

    Raises:
        Unreadable: The file is truncated.
    """
    usual = decoder.color_type.startswith('color') and decoder.imdecode_backend == 'cv2'
    if path.suffix.lower() not in ('.tif', '.tiff') or not usual or not _installed():
        return None
    try:
        rows = TiffRows(path)
    except ValueError:
        return None
    return rows if max(rows.shape[:2]) > least else None


def _installed() -> bool:
    return importlib.util.find_spec('tifffile') is not None
