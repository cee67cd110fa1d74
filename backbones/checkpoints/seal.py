"""The seal of a checkpoint file: the comment of its zip holds the SHA-256 of all bytes before it.

A copy keeps its seal, and other code reads the file as before. `poolformer_dense.files` writes it.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

SEAL_PREFIX = b'sha256:'
SEAL_SIZE = len(SEAL_PREFIX) + 64  # bytes
# The last record of a zip: a signature, 16 bytes about the entries, the length of the comment.
_END = struct.Struct('<4s16sH')
_END_SIGNATURE = b'PK\x05\x06'
ZIP_SIGNATURE = b'PK\x03\x04'


def seal_holds(path: str | Path) -> bool | None:
    """Say whether a file is as it was written.

    Returns:
        True if its checksum holds. False if not, or if the file is empty, a zip without its end, or
        a zip with another comment. None for a file without a seal: another kind of file, or a zip
        without a comment.

    Raises:
        OSError: The file can not be read.
    """
    with open(path, 'rb') as file:
        return check_seal(file)


def check_seal(file: BinaryIO) -> bool | None:
    """Say whether an open file is as it was written; see `seal_holds`."""
    file.seek(0)
    first = file.read(len(ZIP_SIGNATURE))
    size = file.seek(0, os.SEEK_END)
    length, comment = _read_end(file, size, SEAL_SIZE)
    if length == SEAL_SIZE and comment.startswith(SEAL_PREFIX):
        return _digest(file, size - SEAL_SIZE).encode() == comment[len(SEAL_PREFIX) :]
    if _read_end(file, size, 0)[0] == 0:
        return None
    # A text or a safetensors file has no seal to lose, the beginning of a zip has lost its end.
    is_zip = first == ZIP_SIGNATURE or ZIP_SIGNATURE.startswith(first)
    return False if is_zip or length is not None else None


def stated_checksum(file: BinaryIO) -> str:
    """Return what tells one open file from another: what its seal states, unchecked, or its own."""
    size = file.seek(0, os.SEEK_END)
    length, comment = _read_end(file, size, SEAL_SIZE)
    if length == SEAL_SIZE and comment.startswith(SEAL_PREFIX):
        return comment[len(SEAL_PREFIX) :].decode('ascii', 'replace')
    return _digest(file, size)


def find_end(file: BinaryIO, size: int) -> int | None:
    """Return where the last record of a zip is that has no comment or a seal, or None."""
    for comment in (0, SEAL_SIZE):
        if _read_end(file, size, comment)[0] == comment:
            return size - comment - _END.size
    return None


def _read_end(file: BinaryIO, size: int, comment: int) -> tuple[int | None, bytes]:
    """Return the length of the comment and the comment, if the end fits one of that length."""
    if size < _END.size + comment:
        return None, b''
    file.seek(size - _END.size - comment)
    signature, _, length = _END.unpack(file.read(_END.size))
    return (length, file.read()) if signature == _END_SIGNATURE else (None, b'')


def _digest(file: BinaryIO, size: int) -> str:
    sha256 = hashlib.sha256()
    file.seek(0)
    while size > 0 and (chunk := file.read(min(size, 1 << 20))):
        sha256.update(chunk)
        size -= len(chunk)
    return sha256.hexdigest()
