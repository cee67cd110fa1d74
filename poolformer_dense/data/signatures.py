"""What a file is by its first bytes, where it is not an image that the training reads."""

from __future__ import annotations

import io
import struct

from PIL import TiffImagePlugin

# Tags of a TIFF: bits and kind of a sample.
_BITS, _SAMPLE = 258, 339
# What is often found under an image's name, by its first bytes.
_OTHERS = {
    b'<!DOCTYPE': 'a web page',
    b'<!doctype': 'a web page',
    b'<html': 'a web page',
    b'%PDF': 'a PDF file',
    b'\x00\x05\x16\x07': 'a file of metadata that macOS writes',
    b'version https://git-lfs': 'the pointer of a file that Git LFS has not fetched',
    b'\xff\x0a': 'JPEG XL, which neither OpenCV nor Pillow reads',
    b'\x00\x00\x00\x0cJXL ': 'JPEG XL, which neither OpenCV nor Pillow reads',
}
_HEIF = (b'ftypheic', b'ftypheix', b'ftypmif1', b'ftyphevc')


def other_kind(data: bytes) -> str:
    """What a file is that only has an image's name, in words; nothing if it may be one."""
    if data[4:12] in _HEIF:
        return 'HEIF, which neither OpenCV nor Pillow reads; convert it to JPEG'
    if not any(data):
        return 'nothing but zeros'
    return next((what for start, what in _OTHERS.items() if data.startswith(start)), '')


def tiff_samples(data: bytes) -> str:
    """What the samples of a TIFF are, in words, or nothing of other files and damaged ones."""
    if data[:4] not in (b'II*\0', b'MM\0*'):
        return ''
    tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
    try:
        file = io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(_BITS, (1,))
        kinds = tags.get(_SAMPLE, (1,))
    except (struct.error, SyntaxError, OSError, ValueError, TypeError, KeyError):
        return ''
    kind = {2: 'signed integers', 3: 'floats'}.get(kinds[0], 'integers')
    return f'TIFF of {len(bits)} channel{"s" * (len(bits) > 1)} of {bits[0]}-bit {kind}'
