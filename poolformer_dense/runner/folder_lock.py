"""One training at a time in a work directory."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from mmengine.logging import print_log

from ..errors import UserError
from ..files import require_writable

FILE_NAME = 'training.lock'
_held: dict[Path, int] = {}  # folders, and the process that has locked each


@contextmanager
def alone_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Within the block this process trains in a folder, and no other may.

    The kernel holds the lock, for the process itself and not for those that it forks, so it ends
    with the process, whatever ends that. On network file systems it is as good as their locks: NFS
    has them, Lustre if it is mounted with ``flock``. The file names process and host.

    In a process that has the folder already, and for one that does not exist, nothing happens.

    Args:
        folder: The work directory.

    Raises:
        UserError: Another process trains in it, or no file can be written in it.
    """
    place = Path(folder).resolve()
    own = os.getpid()
    if _held.get(place) == own or not place.is_dir():
        yield
        return
    file = _lock(place / FILE_NAME)
    _held[place] = own
    try:
        yield
    finally:
        if os.getpid() == own:
            del _held[place]
            if file is not None:
                Path(file.name).unlink(missing_ok=True)
                file.close()


def _lock(path: Path) -> IO[str] | None:
    """Lock a file and write who holds it; None, with a warning, where there are no locks."""
    while True:
        try:
            if path.is_symlink():  # of a folder that somebody sent: it leads to another file
                path.unlink()
            file = open(path, 'a+', opener=_open_itself)  # noqa: SIM115
        except OSError as error:
            require_writable(path.parent, 'work directory', 'name another one with --work-dir')
            _warn(path, error)
            return None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who held it before may have deleted it in between.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        except FileNotFoundError:
            pass
        except OSError as error:
            with file:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise UserError(_refusal(path, file)) from error
            _warn(path, error)
            return None
        file.close()
    with suppress(OSError):  # the disk is full
        file.truncate(0)
        file.write(f'{os.getpid()} {socket.gethostname()} {time.strftime("%Y-%m-%d %H:%M:%S")}\n')
        file.flush()
    return file


def _open_itself(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _refusal(path: Path, file: IO[str]) -> str:
    file.seek(0)
    pid, host, since = (*file.read().strip().split(' ', 2), '?', '?', '?')[:3]
    elsewhere = host not in ('?', socket.gethostname())
    return (
        f'another training runs in {path.parent}: process {pid} on {host}, since {since}; wait '
        'for its end or stop it, or give this one another folder with --work-dir'
        + (f'. If {host} has crashed, delete {path}' if elsewhere else '')
    )


def _warn(path: Path, error: OSError) -> None:
    print_log(
        f'{path.parent} can not be locked ({error.strerror}): a second training in it would not '
        'be noticed',
        'current',
        logging.WARNING,
    )
