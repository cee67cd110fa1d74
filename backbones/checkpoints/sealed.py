"""Checkpoint files that are whole or not there, and that show any damage done to them later.

A sealed file is what ``torch.save`` writes, an ordinary zip. The comment at its end holds the
SHA-256 of all bytes before the comment, so a copy keeps its checksum and other code reads the file
as before.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

_SUFFIX = '.saving'
_PREFIX = b'sha256:'
_COMMENT = len(_PREFIX) + 64  # bytes
# The last record of a zip: a signature, 16 bytes about the entries, the length of the comment.
_END = struct.Struct('<4s16sH')
_END_SIGNATURE = b'PK\x05\x06'
_FIRST_SIGNATURE = b'PK\x03\x04'


def save(checkpoint: Any, path: str | os.PathLike) -> None:
    """Write a checkpoint that is complete and on disk once it has its name.

    Nothing is held in memory beside what is being saved.

    Args:
        checkpoint: What ``torch.save`` takes.
        path: Where to; what is there stays until the new file takes its place.

    Raises:
        OSError: It could not be written, e.g. for want of space; no part of it stays.
    """
    with replacing(path) as file:
        stream = _Sealing(file)
        try:
            torch.save(checkpoint, stream)
        except Exception as error:
            # torch's writer reports a failed write by errors of its own.
            raise stream.failure or error from error
        stream.close()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place, durably, if the block succeeds.

    Raises:
        OSError: It could not be written; what was at ``path`` is still there.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}{_SUFFIX}')
    try:
        with open(temporary, 'wb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def remove_unfinished(folder: str | os.PathLike) -> list[str]:
    """Remove what killed saves left in a folder, and return the names.

    Nothing else may be saving there.
    """
    left = sorted(Path(folder).glob(f'.*{_SUFFIX}'))
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


def verify(path: str | os.PathLike) -> bool | None:
    """Say whether a file is as it was written.

    Returns:
        True if its checksum holds. False if not, or if the file is empty, a zip without its end, or
        a zip with another comment. None for a file without a seal: another kind of file, or a zip
        without a comment.

    Raises:
        OSError: The file can not be read.
    """
    with open(path, 'rb') as file:
        first = file.read(len(_FIRST_SIGNATURE))
        size = file.seek(0, os.SEEK_END)
        end, comment = _read_end(file, size, _COMMENT)
        if end == _COMMENT and comment.startswith(_PREFIX):
            return _digest(file, size - _COMMENT).hexdigest().encode() == comment[len(_PREFIX) :]
        if _read_end(file, size, 0)[0] == 0:
            return None
    # A text or a safetensors file has no seal to lose, the beginning of a zip has lost its end.
    is_zip = first == _FIRST_SIGNATURE or _FIRST_SIGNATURE.startswith(first)
    return False if is_zip or end is not None else None


class _Sealing:
    """A stream into a file that sets the comment of the zip that goes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._held = b''  # the last two bytes: at the end they are the length of the comment
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        size = len(data)
        if size >= 2:
            self._write(self._held)
            self._write(data[:-2])
            self._held = bytes(data[-2:])
        else:
            held = self._held + bytes(data)
            self._write(held[:-2])
            self._held = held[-2:]
        return size

    def flush(self) -> None:
        """For torch, which flushes at the end; `close` does what counts."""

    def close(self) -> None:
        if self._held != b'\x00\x00':
            raise ValueError('torch.save wrote a zip that does not end as one')
        self._write(struct.pack('<H', _COMMENT))
        self._file.write(_PREFIX + self._sha256.hexdigest().encode())

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._sha256.update(data)


def _read_end(file: BinaryIO, size: int, comment: int) -> tuple[int | None, bytes]:
    """Return the length of the comment and the comment, if the end fits one of that length."""
    if size < _END.size + comment:
        return None, b''
    file.seek(size - _END.size - comment)
    signature, _, length = _END.unpack(file.read(_END.size))
    return (length, file.read()) if signature == _END_SIGNATURE else (None, b'')


def _digest(file: BinaryIO, size: int) -> hashlib._Hash:
    sha256 = hashlib.sha256()
    file.seek(0)
    while size > 0:
        chunk = file.read(min(size, 1 << 20))
        if not chunk:
            break
        sha256.update(chunk)
        size -= len(chunk)
    return sha256


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
