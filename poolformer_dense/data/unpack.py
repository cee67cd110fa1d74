"""Unpacking a zip file that nobody vouches for: what it may not do, and how it goes on."""

from __future__ import annotations

import errno
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import BinaryIO
from zipfile import ZipFile, ZipInfo

from rich.filesize import decimal

from ..errors import UserError
from .inside import OpenFolder, open_folder
from .progress import byte_bar

_CHUNK = 1 << 20
_BLOCK = 4096  # what a file takes on a disk, at least and in steps
# Photographs hardly shrink and annotations shrink fourfold; deflate can reach 1032.
_MOST_PER_BYTE = 20
_DRIVE = re.compile(r'[A-Za-z]:')
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises when the bytes of a file make no sense.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError)


def unpack(path: Path, top: str, root: Path, into: str) -> None:
    """Unpack what a zip file holds below one folder.

    The list of contents is checked first, and nothing is written if anything is wrong with it.
    Each file gets its name when it is whole. One that is there already, of the same size and
    checksum, is left alone, so that a second call goes on where the first one stopped.

    Args:
        path: The zip file; it is only read.
        top: The folder in it; what lies beside is left out.
        root: Where writing is allowed.
        into: Where ``top`` comes to lie, below ``root``.

    Raises:
        UserError: The file is damaged or has an entry that is refused (see `read_entries`), the
            disk has no room, or a link is in the way.
    """
    with _open(path) as archive:
        entries = read_entries(archive, path, top)
        total = sum(entry.file_size for entry in entries)
        with open_folder(root, into) as folder:
            missing = sum(_on_disk(e) for e in entries if not _same_size(folder.path, e))
            if missing > folder.free():
                raise UserError(
                    f'unpacking {path} takes {decimal(missing)}, and {folder.path} has '
                    f'{decimal(folder.free())} free: make room, or give another --root'
                )
        with byte_bar(f'{path.name}: unpacking', total) as update:
            for parent, group in groupby(sorted(entries, key=_parent), key=_parent):
                with open_folder(root, f'{into}/{parent}') as folder:
                    for entry in group:
                        _write(archive, entry, folder)
                        update(advance=entry.file_size)


def compare(path: Path, top: str, folder: Path) -> list[str]:
    """Return the names of what a zip file holds and a folder lacks or has otherwise.

    Args:
        path: The zip file.
        top: The folder in it that is compared.
        folder: What it was unpacked to; ``top`` is in it.

    Raises:
        UserError: The zip file can't be read or has an entry that is refused.
    """
    with _open(path) as archive:
        entries = read_entries(archive, path, top)
        wrong = []
        with byte_bar(f'{path.name}: comparing', sum(e.file_size for e in entries)) as update:
            for entry in entries:
                file = folder / entry.filename
                if not (_same_size(folder, entry) and _crc(file.open('rb')) == entry.CRC):
                    wrong.append(entry.filename)
                update(advance=entry.file_size)
    return wrong


def read_entries(archive: ZipFile, path: Path, top: str) -> list[ZipInfo]:
    """Return the files that a zip file holds below its folder ``top``.

    Raises:
        UserError: A name is absolute, leads upwards or is there twice, an entry is a link, a
            device or encrypted, or the contents are far larger than the zip file.
    """
    files: set[str] = set()
    for entry in archive.infolist():
        problem = _refusal(entry)
        if problem is None and not entry.is_dir() and entry.filename in files:
            problem = 'is there twice'
        if problem:
            raise UserError(
                f'{path}: the entry {entry.orig_filename!r} {problem}, so nothing was unpacked. '
                'The published archives have no such entry: download the file anew'
            )
        if not entry.is_dir():
            files.add(entry.filename)
    for name in files:
        if clash := next((p for p in map(str, PurePosixPath(name).parents) if p in files), None):
            raise UserError(f'{path}: the entry {clash!r} is a file and a folder: download it anew')
    size = sum(entry.file_size for entry in archive.infolist())
    if size > _MOST_PER_BYTE * path.stat().st_size:
        raise UserError(
            f'{path} has {decimal(path.stat().st_size)} and would unpack to {decimal(size)}, so '
            'nothing was unpacked. The published archives are not like this: download it anew'
        )
    return [e for e in archive.infolist() if not e.is_dir() and e.filename.startswith(f'{top}/')]


def _refusal(entry: ZipInfo) -> str | None:
    name = entry.orig_filename
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if name.startswith('/') or _DRIVE.match(name):
        return 'is absolute'
    if '\\' in name or '\0' in name:
        return 'has a backslash or a null byte in its name'
    if any(part in ('', '.', '..') for part in name.removesuffix('/').split('/')):
        return 'leads out of its folder'
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return 'is a link or a device'
    if entry.flag_bits & 1 or entry.compress_type not in _METHODS:
        return 'is encrypted or compressed in another way than by deflate'
    return None


@contextmanager
def _open(path: Path) -> Iterator[ZipFile]:
    try:
        with ZipFile(path) as archive:
            yield archive
    except (*_DAMAGE, OSError) as error:
        # A wrong offset is an invalid seek; other errors of the system are not the archive's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise UserError(f'{path} is damaged ({error}): download it anew') from error


def _write(archive: ZipFile, entry: ZipInfo, folder: OpenFolder) -> None:
    name = PurePosixPath(entry.filename).name
    if folder.size(name) == entry.file_size and _crc(folder.read(name)) == entry.CRC:
        return
    # zipfile never yields more than the declared size and checks the checksum at the end.
    with archive.open(entry) as source, folder.replace(name) as target:
        written = 0
        for chunk in _chunks(source):
            written += target.write(chunk)
        if written != entry.file_size:
            raise zipfile.BadZipFile(f'{entry.filename} ends early')


def _crc(file: BinaryIO) -> int:
    crc = 0
    with file:
        for chunk in _chunks(file):
            crc = zlib.crc32(chunk, crc)
    return crc


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _parent(entry: ZipInfo) -> str:
    return str(PurePosixPath(entry.filename).parent)


def _on_disk(entry: ZipInfo) -> int:
    return -(-entry.file_size // _BLOCK) * _BLOCK


def _same_size(folder: Path, entry: ZipInfo) -> bool:
    file = folder / entry.filename
    return file.is_file() and file.stat().st_size == entry.file_size
