"""The container of a checkpoint: a zip as torch.save writes it."""

from __future__ import annotations

import re
import stat
import struct
import zipfile
from dataclasses import dataclass
from typing import BinaryIO

from .refusals import damaged, forged
from .seal import find_end

_END = struct.Struct('<4x4HL6x')
_END64 = struct.Struct('<32xQQ8x4s16x')  # the end of 64 bits and its locator
_LOCAL = struct.Struct(
    '<26xHH'
)  # of the header before an entry: bytes of its name and what follows
_DIRECTORY = (
    2 << 20
)  # bytes that any list of entries may have; a larger one goes by the file's size
_DESCRIPTOR = 24  # bytes that may follow an entry
_UTF8 = 0x0800  # the flag of an entry's name
_FLAGS = _UTF8 | 0x0008  # sizes follow the data
_SMALL = 1024  # bytes of a record that is not data
_RECORD = re.compile(
    r'data\.pkl|data/[0-9A-Za-z_]+|version|byteorder|\.format_version|\.storage_alignment'
    r'|\.data/serialization_id'
)


@dataclass(frozen=True)
class Record:
    """Where an entry's bytes are in the file."""

    start: int
    size: int


def read_records(file: BinaryIO, size: int) -> dict[str, Record]:
    """Return the records of a zip as torch.save writes it, by their name without the folder.

    Args:
        file: The file.
        size: Its bytes.

    Raises:
        Refused: It is anything else than entries one after the other, stored as they are, each
            once, all in one folder, under names that torch.save gives.
    """
    count = _check_directory(file, size)
    try:
        entries = sorted(zipfile.ZipFile(file).infolist(), key=lambda entry: entry.header_offset)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise damaged('it is no whole zip') from error
    records: dict[str, Record] = {}
    folders, free = set(), 0
    for entry in entries:
        folder, _, name = entry.orig_filename.partition('/')
        folders.add(folder)
        if name in ('constants.pkl', 'attributes.pkl') or name.startswith('code/'):
            raise forged('it is a TorchScript archive, a program')
        if folder in ('', '.', '..') or '\\' in folder or not _RECORD.fullmatch(name):
            raise forged(f'it has an entry named {entry.orig_filename!a}')
        if entry.compress_type or entry.file_size != entry.compress_size:
            raise forged(f'its entry {name!a} is compressed')
        if entry.flag_bits & ~_FLAGS or stat.S_ISLNK(entry.external_attr >> 16):
            raise forged(f'its entry {name!a} is encrypted, patched or a link')
        if not name.startswith('data') and entry.file_size > _SMALL:
            raise forged(f'its entry {name!a} has {entry.file_size:,} bytes')
        file.seek(entry.header_offset)
        header = file.read(_LOCAL.size)
        lengths = _LOCAL.unpack(header) if len(header) == _LOCAL.size else (0, 0)
        listed = entry.orig_filename.encode('utf-8' if entry.flag_bits & _UTF8 else 'cp437')
        if file.read(lengths[0]) != listed or name in records or entry.volume:
            raise forged(f'its entry {name!a} contradicts the list of entries')
        start = entry.header_offset + _LOCAL.size + sum(lengths)
        if not free <= entry.header_offset <= free + (_DESCRIPTOR if free else 0):
            raise forged(f'its entry {name!a} overlaps another or leaves a gap')
        free = start + entry.file_size
        records[name] = Record(start, entry.file_size)
    if len(folders) != 1 or len(entries) != count or free > size or 'data.pkl' not in records:
        raise forged('its entries are not those of one checkpoint')
    return records


def _check_directory(file: BinaryIO, size: int) -> int:
    """Refuse a list of entries that would take much memory, before it is read; count them."""
    end = find_end(file, size)
    if end is None:
        raise damaged('it has no end')
    file.seek(end)
    disk, start_disk, here, count, length = _END.unpack(file.read(_END.size))
    if disk or start_disk or here != count:
        raise forged('it is one of several volumes')
    if end >= _END64.size:
        file.seek(end - _END64.size)
        count64, length64, locator = _END64.unpack(file.read(_END64.size))
        if locator == b'PK\x06\x07':
            count, length = count64, length64
    if length > max(size // 16, _DIRECTORY):
        raise forged(f'its list of entries has {length:,} of {size:,} bytes')
    return int(count)
