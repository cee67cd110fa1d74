"""The outside of a checkpoint file, checked before anything in it is parsed.

Sources: APPNOTE.TXT 6.3 (zip) and what torch.save writes; the safetensors format's README.
"""

from __future__ import annotations

import re
import stat
import struct
from dataclasses import dataclass
from typing import BinaryIO

from .errors import Refused, damaged, forged

_END = struct.Struct('<4s4H2LH')
_END64 = struct.Struct('<4sQ2H2L4Q')
_LOCATOR64 = struct.Struct('<4sLQL')
_ENTRY = struct.Struct('<4s4B4HL2L5H2L')
_LOCAL = struct.Struct('<4s5H3L2H')
_COMMENT = 0xFFFF  # bytes, the longest
_DESCRIPTOR = 24  # bytes that may follow an entry
_FLAGS = 0x0808  # sizes follow the data; the name is UTF-8
_DIRECTORY = 4 << 20  # bytes that any directory may have; a larger one goes by the file's size
_SMALL = 1024  # bytes of a record that is not data
_RECORD = re.compile(
    r'data\.pkl|data/[0-9A-Za-z_]+|version|byteorder|\.format_version|\.storage_alignment'
    r'|\.data/serialization_id'
)
_HEADER_SHARE, _HEADER, _LARGEST_HEADER = 16, 1 << 20, 100_000_000  # of safetensors


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
            once, all in one folder, under names that torch.save gives, and a list of them at the
            end that says the same.
    """
    start, end, count = _find_directory(file, size)
    file.seek(start)
    directory = file.read(end - start)
    entries, at = [], 0
    for _ in range(count):
        name, header, length, at = _read_entry(directory, at)
        entries.append((header, name, length))
    if at != len(directory):
        raise forged('its list of entries does not end where it says')
    records, folders, free = {}, set(), 0
    for header, name, length in sorted(entries):
        data = _check_local(file, header, name, length, start)
        if not free <= header <= free + (_DESCRIPTOR if free else 0) or data + length > start:
            raise forged(f'its entry {name!a} overlaps another or leaves a gap')
        free = data + length
        folder, _, record = name.partition('/')
        folders.add(folder)
        if record in ('constants.pkl', 'attributes.pkl') or record.startswith('code/'):
            raise forged('it is a TorchScript archive, a program')
        if folder in ('', '.', '..') or not _RECORD.fullmatch(record) or '\\' in folder:
            raise forged(f'it has an entry named {name!a}')
        if not record.startswith('data') and length > _SMALL:
            raise forged(f'its entry {name!a} has {length:,} bytes')
        records[record] = Record(data, length)
    # torch's reader doesn't tell upper from lower case.
    if len({record.lower() for record in records}) < count:
        raise forged('two of its entries have one name')
    if len(folders) != 1 or start - free > _DESCRIPTOR or 'data.pkl' not in records:
        raise forged('its entries are not those of one checkpoint')
    return records


def check_safetensors(file: BinaryIO, size: int) -> None:
    """Refuse a safetensors file whose header alone would take much memory to parse.

    Offsets, shapes and types are checked by the safetensors library.

    Raises:
        Refused: The header is longer than the file or than 1 MiB and a sixteenth of it.
    """
    file.seek(0)
    first = file.read(8)
    header = int.from_bytes(first, 'little')
    if len(first) < 8 or header + 8 > size:
        raise not_safetensors('it has no whole header')
    if header > min(max(size // _HEADER_SHARE, _HEADER), _LARGEST_HEADER):
        raise not_safetensors(f'its header has {header:,} of {size:,} bytes')


def not_safetensors(what: str) -> Refused:
    """The refusal of a safetensors file that is none."""
    return Refused(
        f'it is truncated or not in the safetensors format ({what}); copy or download it anew'
    )


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return where the list of entries starts and ends, and how many there are."""
    tail = min(size, _END.size + _COMMENT)
    file.seek(size - tail)
    data = file.read(tail)
    at = data.rfind(b'PK\x05\x06')
    if at < 0 or at + _END.size > tail:
        raise damaged('it has no end')
    _, disk, start_disk, here, count, length, start, comment = _END.unpack_from(data, at)
    if at + _END.size + comment != tail:
        raise damaged('something follows its end or is missing there')
    end = size - tail + at
    if disk or start_disk or here != count:
        raise forged('it is one of several volumes')
    if (locator := at - _LOCATOR64.size) >= _END64.size and data.startswith(b'PK\x06\x07', locator):
        end -= _LOCATOR64.size + _END64.size
        _, _, place, _ = _LOCATOR64.unpack_from(data, locator)
        sign, rest, _, _, disk, start_disk, here, count64, length64, start64 = _END64.unpack_from(
            data, locator - _END64.size
        )
        fields = ((count, count64, 16), (length, length64, 32), (start, start64, 32))
        if (
            (sign, place, rest, disk, start_disk, here)
            != (b'PK\x06\x06', end, _END64.size - 12, 0, 0, count64)
        ) or any(short not in (full, (1 << bits) - 1) for short, full, bits in fields):
            raise forged('its two ends say different things')
        count, length, start = count64, length64, start64
    if start + length != end:
        raise damaged('its list of entries is not where its end says')
    if count * _ENTRY.size > length:
        raise forged(f'its list of {count:,} entries has {length:,} bytes')
    if length > max(size // 16, _DIRECTORY):
        raise forged(f'its list of entries has {length:,} of {size:,} bytes')
    return start, end, count


def _read_entry(directory: bytes, at: int) -> tuple[str, int, int, int]:
    """Return an entry's name, where its header is, its bytes, and where the next one is listed."""
    if at + _ENTRY.size > len(directory):
        raise forged('its list of entries is too short')
    (sign, _, _, _, _, flags, method, _, _, _, packed, length, name_length, extra_length,
     comment_length, disk, _, attributes, header) = _ENTRY.unpack_from(directory, at)  # fmt: skip
    at += _ENTRY.size
    raw = directory[at : at + name_length]
    extra = directory[at + name_length : at + name_length + extra_length]
    name = raw.decode('utf-8', 'backslashreplace')
    if sign != b'PK\x01\x02' or len(raw) < name_length or len(extra) < extra_length:
        raise forged('its list of entries is broken')
    if flags & ~_FLAGS:
        raise forged(f'its entry {name!a} is encrypted or patched')
    if method or packed != length:
        raise forged(f'its entry {name!a} is compressed')
    if disk or stat.S_ISLNK(attributes >> 16):
        raise forged(f'its entry {name!a} is a link or elsewhere')
    if 0xFFFFFFFF in (length, header):
        wide = _wide_fields(extra, (length, length, header))
        if wide[0] != wide[1]:
            raise forged(f'its entry {name!a} is compressed')
        length, header = wide[0], wide[2]
    return name, header, length, at + name_length + extra_length + comment_length


def _wide_fields(extra: bytes, fields: tuple[int, ...]) -> list[int]:
    """Fill fields that 32 bits can't hold from the entry's extra data (tag 1)."""
    while len(extra) >= 4:
        tag, length = struct.unpack_from('<2H', extra)
        if tag == 1:
            numbers = iter(struct.unpack_from(f'<{length // 8}Q', extra[: 4 + length], 4))
            wide = [next(numbers, None) if f == 0xFFFFFFFF else f for f in fields]
            if None not in wide:
                return wide
        extra = extra[4 + length :]
    raise forged('the size of an entry is missing')


def _check_local(file: BinaryIO, header: int, name: str, length: int, limit: int) -> int:
    """Compare the header before an entry's data with the list; return where the data starts."""
    file.seek(header)
    raw = file.read(_LOCAL.size) if header < limit else b''
    if len(raw) < _LOCAL.size:
        raise forged(f'its entry {name!a} is outside of the file')
    sign, _, flags, method, _, _, _, packed, size, name_length, extra_length = _LOCAL.unpack(raw)
    known = (0, length, 0xFFFFFFFF)
    if (
        (sign, flags & ~_FLAGS, method) != (b'PK\x03\x04', 0, 0)
        or file.read(name_length).decode('utf-8', 'backslashreplace') != name
        or packed not in known
        or size not in known
    ):
        raise forged(f'its entry {name!a} contradicts the list of entries')
    return header + _LOCAL.size + name_length + extra_length
