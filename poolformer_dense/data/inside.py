"""Writing below one folder: never through a link, and each file whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rich.filesize import decimal

from ..errors import UserError


class OpenFolder:
    """A folder held open: what is written to it lands there, whatever its path becomes.

    Names are of files directly in it.
    """

    def __init__(self, path: Path, handle: int) -> None:
        self.path = path
        self._handle = handle

    @contextmanager
    def replace(self, name: str) -> Iterator[BinaryIO]:
        """Open a file to write; it gets its name when the block ends without an error.

        What had the name before is replaced; a link is, too, and not what it leads to.
        """
        partial = f'.{name}.part'
        self.remove(partial)  # of a run that was killed
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        try:
            with os.fdopen(os.open(partial, flags, 0o666, dir_fd=self._handle), 'wb') as file:
                yield file
            os.rename(partial, name, src_dir_fd=self._handle, dst_dir_fd=self._handle)
        except BaseException:
            self.remove(partial)
            raise

    def append(self, name: str) -> BinaryIO:
        """Open a file, made if need be, to read and to append to."""
        if self.size(name) is None:
            self.remove(name)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
        return os.fdopen(os.open(name, flags, 0o666, dir_fd=self._handle), 'a+b')

    def read(self, name: str) -> BinaryIO:
        """Open a file of this folder for reading."""
        return os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=self._handle), 'rb')

    def size(self, name: str) -> int | None:
        """Bytes of a file; None if there is none of this name, or something else than a file."""
        try:
            found = os.stat(name, dir_fd=self._handle, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, in place of what had it."""
        os.rename(old, new, src_dir_fd=self._handle, dst_dir_fd=self._handle)

    def remove(self, name: str) -> None:
        """Delete a file or a link, if there is one."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._handle)

    def link(self, name: str, target: Path) -> None:
        """Make a symbolic link."""
        os.symlink(target, name, dir_fd=self._handle)

    def free(self) -> int:
        """Bytes that can be written here."""
        found = os.fstatvfs(self._handle)
        return found.f_bavail * found.f_frsize

    def check_room(self, need: int, what: str, remedy: str = 'give another --root') -> None:
        """Raise UserError if fewer bytes than needed can be written here."""
        if need > self.free():
            raise UserError(
                f'{what} takes {decimal(need)}, and {self.path} has {decimal(self.free())} free: '
                f'make room, or {remedy}'
            )

    def lock(self) -> None:
        """Keep other processes of this tool out until this one ends or closes the folder.

        Raises:
            UserError: Another one is at work.
        """
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f'{self.path} is being prepared by another process; wait for it to end'
            ) from error
        except OSError as error:
            # Some network file systems have no locks: then it is up to the user.
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise


@contextmanager
def open_folder(root: Path, relative: str = '') -> Iterator[OpenFolder]:
    """Open a folder to write in; make it, and those above it, if need be.

    Args:
        root: Where writing is allowed. It may be a link itself.
        relative: The folder, below ``root``.

    Raises:
        UserError: A link or a file lies on the way.
    """
    root.mkdir(parents=True, exist_ok=True)
    path, handle = root, os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in PurePosixPath(relative).parts:
            path = path / part
            with suppress(FileExistsError):
                os.mkdir(part, dir_fd=handle)
            try:
                flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
                inner = os.open(part, flags, dir_fd=handle)
            except OSError as error:
                if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                    raise
                raise UserError(_in_the_way(path, root)) from error
            os.close(handle)
            handle = inner
        yield OpenFolder(path, handle)
    finally:
        os.close(handle)


def _in_the_way(path: Path, root: Path) -> str:
    if path.is_symlink():
        return (
            f'{path} is a link to {os.readlink(path)}, and nothing is written through links below '
            f'--root ({root}): delete the link, or name the place itself by --root'
        )
    return f'{path} is a file where a folder is needed: move it away'
