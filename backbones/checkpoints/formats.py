"""The three formats of checkpoint files, read without running what they hold."""

from __future__ import annotations

import json
import pickle
import sys
import tarfile
from collections.abc import Callable
from io import BufferedReader
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .archive import read_records
from .digest import digest
from .refusals import Refused, damaged, first_line, forged, holds_code
from .seal import ZIP_SIGNATURE
from .unpickling import unpickle

_LONGEST_HEAD = 16 << 20  # bytes of the pickles in a file of torch before 1.6
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_HEADER_SHARE, _HEADER = 16, 1 << 20  # of a safetensors file


def check_container(file: BinaryIO, size: int, suffix: str) -> str:
    """Refuse a file that does not look like a checkpoint from outside; return its format.

    Args:
        file: The file.
        size: Its bytes.
        suffix: Of its name.
    """
    file.seek(0)
    first = file.read(max(len(_MAGIC), tarfile.BLOCKSIZE))
    if suffix == '.safetensors':
        header = int.from_bytes(first[:8], 'little')
        if len(first) < 8 or header + 8 > size:
            raise _not_safetensors('it has no whole header')
        # Its header alone could take much memory to parse; the library checks the rest.
        if header > max(size // _HEADER_SHARE, _HEADER):
            raise _not_safetensors(f'its header has {header:,} of {size:,} bytes')
        return 'safetensors'
    if first.startswith(ZIP_SIGNATURE):
        read_records(file, size)
        return 'zip'
    if _is_tar(first):
        raise holds_code('pickles in a tar (the format of torch 0.1)')
    if not first.startswith(_MAGIC):
        raise damaged('it is neither a zip nor a pickle of torch.save')
    return 'old'


def read_zip(file: BufferedReader, size: int, device: torch.device) -> Any:
    """Read what torch.save writes.

    Args:
        file: The file.
        size: Its bytes.
        device: Where tensors go.
    """
    records = read_records(file, size)
    pickled, order = records['data.pkl'], records.get('byteorder')
    if order is not None:
        file.seek(order.start)
        _check_order(file.read(order.size).decode('latin-1'))

    def storage(key: str, length: int) -> Tensor:
        if (record := records.get(f'data/{key}')) is None:
            raise forged(f'it has no storage {key[:40]!a}')
        return _read_bytes(file, record.start, record.size, device)

    file.seek(pickled.start)
    checkpoint, end = unpickle(file.read(pickled.size), 0, size, storage)
    if end != pickled.size:
        raise damaged('something follows its pickle')
    return checkpoint


def read_old(file: BufferedReader, size: int, device: torch.device) -> Any:
    """Read a file of torch before 1.6: five pickles, then the bytes of the storages.

    Args:
        file: The file.
        size: Its bytes.
        device: Where tensors go.
    """
    file.seek(0)
    head = file.read(_LONGEST_HEAD)
    storages: dict[str, Tensor] = {}

    def storage(key: str, length: int) -> Tensor:
        if length + sum(map(len, storages.values())) > size:
            raise forged(f'its storage {key[:40]!a} is said to have {length:,} bytes')
        storages[key] = torch.empty(length, dtype=torch.uint8, device=device)
        return storages[key]

    parts, at = [], 0
    for _ in range(5):  # the magic number, the version, the machine, the checkpoint, the keys
        part, at = unpickle(head, at, size, storage, old=True)
        parts.append(part)
    _, _, machine, checkpoint, keys = parts
    if isinstance(machine, dict) and machine.get('little_endian') is False:
        _check_order('big')
    if type(keys) is not list or sorted(map(str, keys)) != sorted(storages):
        raise forged('its list of storages is not that of its tensors')
    for key in keys:
        data = storages[key]
        file.seek(at)
        elements = int.from_bytes(file.read(8), 'little')
        if (
            elements > len(data)
            or bool(elements) != bool(len(data))
            or len(data) % max(elements, 1)
        ):
            raise forged(f'its storage {key[:40]!a} is said to have {elements:,} elements')
        if device.type != 'meta':
            data.copy_(_read_bytes(file, at + 8, len(data), torch.device('cpu')))
        at += 8 + len(data)
    if at != size:
        raise damaged('its storages and its size do not agree')
    return checkpoint


def read_safetensors(file: BufferedReader, size: int, device: torch.device) -> dict[str, Any]:
    """Read a ``.safetensors`` file.

    What tools/publish.py wrote is returned as a checkpoint that tells its classes; its tensors must
    have their checksum.

    Args:
        file: The file.
        size: Its bytes.
        device: Where tensors go.
    """
    try:
        tensors = safetensors.torch.load_file(file.name)
    except (safetensors.SafetensorError, ValueError) as error:
        raise _not_safetensors(first_line(error)) from error
    with safetensors.safe_open(file.name, 'pt') as opened:
        header = opened.metadata() or {}
    if 'sha256' in header and header['sha256'] != digest(tensors):
        raise damaged('its tensors do not have the checksum in its header')
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    try:
        classes = json.loads(header['classes'])
    except (KeyError, ValueError):
        return tensors
    if not isinstance(classes, list) or not all(isinstance(each, str) for each in classes):
        return tensors
    return {'state_dict': tensors, 'meta': {'dataset_meta': {'classes': tuple(classes)}}}


# By what `check_container` returns.
READERS: dict[str, Callable[[BufferedReader, int, torch.device], Any]] = {
    'zip': read_zip,
    'old': read_old,
    'safetensors': read_safetensors,
}


def _not_safetensors(what: str) -> Refused:
    return Refused(
        f'it is truncated or not in the safetensors format ({what}); copy or download it again'
    )


def _read_bytes(file: BufferedReader, start: int, length: int, device: torch.device) -> Tensor:
    try:
        if device.type == 'meta':
            return torch.empty(length, dtype=torch.uint8, device=device)
        data = torch.empty(length, dtype=torch.uint8)
        file.seek(start)
        if file.readinto(memoryview(data.numpy())) != length:  # type: ignore[arg-type]
            raise damaged('its end is missing')
        return data.to(device)
    except (RuntimeError, AssertionError) as error:  # as torch says that there is no such device
        raise Refused(
            f'its tensors can not be put on {device} ({first_line(error)}); if there is no such '
            'device, choose another'
        ) from error


def _check_order(order: str) -> None:
    if order != sys.byteorder:
        raise Refused(f'its numbers are {order[:6]!a}-endian; save it again on a machine like this')


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
        return False
    return True
