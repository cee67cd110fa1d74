"""Unpacking a zip file from an unknown source: what is refused, and how an unpacking resumes."""

from __future__ import annotations

import errno
import re
import shutil
import stat
import zipfile
import zlib
from collections import Counter
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
_BLOCK = 4096  # a file takes whole blocks of a disk
# Photographs hardly shrink and annotations shrink fourfold; deflate can reach 1032.
_MOST_PER_BYTE = 20
_DRIVE = re.compile(r'[A-Za-z]:')
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises on a damaged file.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeError)


def unpack(path: Path, top: str, root: Path, into: str, parent: str = '') -> None:
    """Unpack what a zip file holds below one folder.

    The list of contents is checked first, and nothing is written if anything is wrong with it.
    Each file gets its name when it is whole. One that is there already, of the same size and
    checksum, is left alone, so that a second call resumes where the first one stopped.

    Args:
        path: The zip file; it is only read.
        top: The folder in it; what lies beside is left out.
        root: Where writing is allowed.
        into: Where ``top`` comes to lie, below ``root``.
        parent: The folder in the zip file that ``top`` is in.

    Raises:
        UserError: The file is damaged or has an entry that is refused (see `_refusal`), the
            disk has no room, or a link is in the way.
    """
    with _open(path) as archive:
        entries = _read_entries(archive, path, top, parent)
        with open_folder(root, into) as folder:
            missing = sum(_on_disk(e) for e in entries if not _has_size(folder.path, e))
            folder.check_room(missing, f'unpacking {path}')
        total = sum(entry.file_size for entry in entries)
        with byte_bar(f'{path.name}: unpacking', total) as update:
            for place, group in groupby(sorted(entries, key=_parent), key=_parent):
                with open_folder(root, f'{into}/{place}') as folder:
                    for entry in group:
                        _write(archive, entry, folder)
                        update(advance=entry.file_size)


def differing_files(path: Path, top: str, folder: Path, parent: str = '') -> list[str]:
    """Return the files of a zip file that a folder lacks or has with other contents.

    Args:
        path: The zip file.
        top: The folder in it that is compared.
        folder: What it was unpacked to; ``top`` is in it.
        parent: The folder in the zip file that ``top`` is in.

    Raises:
        UserError: The zip file can't be read or has an entry that is refused.
    """
    differing = []
    with _open(path) as archive:
        entries = _read_entries(archive, path, top, parent)
        with byte_bar(f'{path.name}: comparing', sum(e.file_size for e in entries)) as update:
            for entry in entries:
                file = folder / entry.filename
                if not (_has_size(folder, entry) and _crc(file.open('rb')) == entry.CRC):
                    differing.append(entry.filename)
                update(advance=entry.file_size)
    return differing


def _read_entries(archive: ZipFile, path: Path, top: str, parent: str) -> list[ZipInfo]:
    """Return the files below the folder ``top``, named from there, or refuse the whole archive."""
    for entry, problem in _problems(archive.infolist()):
        raise UserError(
            f'{path}: the entry {entry.orig_filename!r} {problem}, so nothing was unpacked. '
            'The published archives have no such entry: download it again'
        )
    entries = [entry for entry in archive.infolist() if not entry.is_dir()]
    packed, size = path.stat().st_size, sum(entry.file_size for entry in entries)
    if size > _MOST_PER_BYTE * packed:
        raise UserError(
            f'{path} has {decimal(packed)} and would unpack to {decimal(size)}, so nothing was '
            'unpacked. The published archives are not like this: download it again'
        )
    start = f'{parent}/' if parent else ''
    entries = [entry for entry in entries if entry.filename.startswith(f'{start}{top}/')]
    for entry in entries:
        entry.filename = entry.filename.removeprefix(start)
    return entries


def _problems(entries: list[ZipInfo]) -> Iterator[tuple[ZipInfo, str]]:
    for entry in entries:
        if problem := _refusal(entry):
            yield entry, problem
    files = Counter(entry.filename for entry in entries if not entry.is_dir())
    for entry in entries:
        if files[entry.filename] > 1:
            yield entry, 'is there twice'
        if any(str(parent) in files for parent in PurePosixPath(entry.filename).parents):
            yield entry, 'lies in what is a file'


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
        raise UserError(f'{path} is damaged ({error}): download it again') from error


def _write(archive: ZipFile, entry: ZipInfo, folder: OpenFolder) -> None:
    name = PurePosixPath(entry.filename).name
    if folder.size(name) == entry.file_size and _crc(folder.read(name)) == entry.CRC:
        return
    # zipfile never yields more than the declared size and checks the checksum at the end.
    with archive.open(entry) as source, folder.replace(name) as target:
        shutil.copyfileobj(source, target)
        if target.tell() != entry.file_size:
            raise zipfile.BadZipFile(f'{entry.filename} ends early')


def _crc(file: BinaryIO) -> int:
    crc = 0
    with file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def _parent(entry: ZipInfo) -> str:
    return str(PurePosixPath(entry.filename).parent)


def _on_disk(entry: ZipInfo) -> int:
    return -(-entry.file_size // _BLOCK) * _BLOCK


def _has_size(folder: Path, entry: ZipInfo) -> bool:
    file = folder / entry.filename
    return file.is_file() and file.stat().st_size == entry.file_size
