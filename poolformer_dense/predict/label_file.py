"""A label map as a PNG that is written by rows, so that it need not be in memory."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import replacing


def write_label_rows(
    path: Path, rows: Iterable[NDArray[Any]], size: tuple[int, int], classes: int
) -> None:
    """Write labels as a PNG of one channel, whole or not at all; folders are made.

    Args:
        path: The file.
        rows: (h, W) each, from the top.
        size: Height and width of the image.
        classes: How many there are; beyond 256 the file has 16 bits.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = size
    depth = '>u1' if classes <= 256 else '>u2'
    packer = zlib.compressobj(6)
    with replacing(path) as file:
        file.write(b'\x89PNG\r\n\x1a\n')
        bits = np.dtype(depth).itemsize * 8
        file.write(_chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, bits, 0, 0, 0, 0)))
        for part in rows:
            values = np.ascontiguousarray(part.astype(depth)).view(np.uint8).reshape(len(part), -1)
            lines = np.insert(values, 0, 0, axis=1)  # each line begins with its filter: none
            file.write(_chunk(b'IDAT', packer.compress(lines.tobytes())))
        file.write(_chunk(b'IDAT', packer.flush()))
        file.write(_chunk(b'IEND', b''))


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', checksum)
