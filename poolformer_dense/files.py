"""Writing files that are whole or not there; checkpoints show any damage done to them later.

A sealed checkpoint is what ``torch.save`` writes, with a checksum as the comment of its zip: see
`backbones.checkpoints.seal`, which checks it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import torch
from torch import Tensor

from backbones.checkpoints import CheckpointError
from backbones.checkpoints.refusals import first_line
from backbones.checkpoints.seal import SEAL_PREFIX, SEAL_SIZE

from .errors import UserError

_SUFFIX = '.saving'


def save_sealed(checkpoint: Any, path: str | os.PathLike[str]) -> None:
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
            torch.save(checkpoint, cast(IO[bytes], stream))
        except Exception as error:
            # torch's writer reports a failed write by errors of its own.
            raise stream.failure or error from error
        stream.close()


def write_checkpoint(
    tensors: Mapping[str, Tensor], path: str | Path, wrapper: str | None = None
) -> None:
    """Write tensors to a new file, whole or not at all.

    Args:
        tensors: What to write, by name.
        path: A ``.safetensors`` file, or one that torch.save writes.
        wrapper: The entry of the latter that holds the tensors; None puts them at its top.

    Raises:
        CheckpointError: The file exists or can't be written.
    """
    path = Path(path).expanduser()
    if path.exists():
        raise CheckpointError(f'{path} exists; delete it or give another name')
    tensors = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
    try:
        if path.suffix == '.safetensors':
            import safetensors.torch

            with replacing(path) as file:
                file.write(safetensors.torch.save(tensors, metadata={'format': 'pt'}))
        else:
            save_sealed({wrapper: tensors} if wrapper else tensors, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'{path} could not be written ({first_line(error)})') from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a file beside ``path`` that takes its place, durably, if the block succeeds.

    Raises:
        OSError: It could not be written; what was at ``path`` is still there.
    """
    path = Path(path)
    temporary = path.with_name(f'.{path.name}{_SUFFIX}')
    try:
        # A folder that somebody sent may have a link there, which would lead to another file.
        temporary.unlink(missing_ok=True)
        with open(temporary, 'xb') as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def require_writable(folder: str | os.PathLike[str], what: str, remedy: str) -> None:
    """Refuse a folder in which no file can be written, without leaving anything there.

    Args:
        folder: It need not exist yet.
        what: What names the folder, for the message: a config's key or an argument.
        remedy: How to name another one.

    Raises:
        UserError: It, or the one in which it would be made, can't be written.
    """
    place = Path(folder).absolute()
    try:
        # A file on the way is found, and a link that leads nowhere.
        while not place.is_dir() and not os.path.lexists(place) and place != place.parent:
            place = place.parent
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b'.')
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        where = '' if place == Path(folder).absolute() else f' in {place}'
        reason = 'it is not a folder' if place.exists() and not place.is_dir() else error.strerror
        raise UserError(
            f'{what}: {folder} can not be written{where} ({reason}): logs and checkpoints go '
            f'there; {remedy}'
        ) from error


def remove_unfinished(folder: str | os.PathLike[str]) -> list[str]:
    """Remove what killed saves left in a folder, and return the names.

    Nothing else may be saving there.
    """
    left = sorted(Path(folder).glob(f'.*{_SUFFIX}'))
    for path in left:
        path.unlink(missing_ok=True)
    return [path.name for path in left]


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
        self._write(struct.pack('<H', SEAL_SIZE))
        self._file.write(SEAL_PREFIX + self._sha256.hexdigest().encode())

    def _write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = self.failure or error
            raise
        self._sha256.update(data)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
