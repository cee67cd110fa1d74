"""Reading a checkpoint file without running what it contains."""

from __future__ import annotations

import contextlib
import os
import pickle
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import torch
from mmengine.runner import CheckpointLoader
from torch import Tensor

from .allowed import ALLOWED
from .containers import Record, check_safetensors, not_safetensors, read_records
from .errors import CheckpointError, Refused, damaged, first_line, forged, holds_code
from .schemes import local_file
from .seal import seal_holds
from .stand_ins import expect
from .vetting import vet_pickle

_ZIP = b'PK\x03\x04'
_LONGEST_HEAD = 16 << 20  # bytes of the pickles in a file of torch before 1.6
_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)


def read_checkpoint(
    source: str | Path, map_location: str | torch.device | None = 'cpu', unsafe: bool = False
) -> Any:
    """Read a checkpoint: ``.safetensors``, or what torch.save writes.

    The file is checked before anything in it is parsed: its seal if it has one, its container, and
    every object that its pickle would build. Then torch's restricted unpickler reads it. At no
    point is anything run that the file holds, nor more memory taken than twice its size, or 32 MiB
    for small ones; only a log in it takes up to four times its own size.

    Args:
        source: A path, an http(s) URL, the name of released weights such as ``poolformer_s12``, a
            name of mmengine's lists (``torchvision://resnet50``, ``open-mmlab://``, ``mmcls://``)
            or an object in a store (``s3://``). A download is kept in torch.hub's checkpoint
            folder.
        map_location: Where tensors go; None is the CPU.
        unsafe: Run what the file holds. Its seal and its container must still be right.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, has another checksum than it
            had, or isn't a checkpoint of tensors and plain data.
    """
    map_location = map_location or 'cpu'
    with local_file(source) as path:
        try:
            checkpoint = _read(path, map_location, unsafe)
        except OSError as error:
            raise CheckpointError(
                f'checkpoint {path} was not loaded: it can not be read ({first_line(error)})'
            ) from error
        except Refused as refusal:
            raise CheckpointError(f'checkpoint {path} was not loaded: {refusal}') from refusal
    if str(source).startswith('mmcls://'):
        weights, prefix = checkpoint.get('state_dict', checkpoint), 'backbone.'
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        return {'state_dict': weights}
    return checkpoint


@contextlib.contextmanager
def safe_reading(unsafe: bool = False) -> Iterator[None]:
    """Make mmengine read checkpoints of every scheme by `read_checkpoint` meanwhile.

    Without it mmengine falls back to the unrestricted unpickler for what the restricted one
    refuses.

    Args:
        unsafe: Run what the files hold.
    """

    # mmengine logs the name from its eleventh character on.
    def load_from_checked_file(filename: str, map_location: Any = None) -> Any:
        return read_checkpoint(filename, map_location, unsafe)

    # mmengine has no other way to learn what is registered.
    before = dict(CheckpointLoader._schemes)
    for scheme in before:
        CheckpointLoader.register_scheme(scheme, load_from_checked_file, force=True)
    try:
        yield
    finally:
        for scheme, loader in before.items():
            CheckpointLoader.register_scheme(scheme, loader, force=True)


def _read(path: Path, map_location: str | torch.device, unsafe: bool) -> Any:
    if seal_holds(path) is False:
        raise damaged('its end or its checksum is wrong')
    with path.open('rb') as file:
        size = file.seek(0, os.SEEK_END)
        if path.suffix == '.safetensors':
            check_safetensors(file, size)
            return _read_safetensors(path, map_location)
        return _read_pickled(file, size, map_location, unsafe)


def _read_pickled(file: BinaryIO, size: int, map_location: str | torch.device, unsafe: bool) -> Any:
    file.seek(0)
    is_zip = file.read(len(_ZIP)) == _ZIP
    records = read_records(file, size) if is_zip else {}
    if unsafe:
        reading = contextlib.nullcontext()
    elif is_zip:
        _vet_zip(file, size, records)
        reading = _allowing(ALLOWED)
    else:
        _vet_legacy(file, size)
        reading = _allowing(ALLOWED)
    file.seek(0)
    try:
        with reading:
            return torch.load(file, map_location=map_location, weights_only=not unsafe)
    except Exception as error:  # whatever a file or its code comes up with
        raise damaged(f'torch can not read it ({first_line(error)})') from error


@contextlib.contextmanager
def _allowing(functions: Sequence[Callable]) -> Iterator[None]:
    # torch 2.4 lacks torch.serialization.safe_globals, which does the same.
    before = list(torch.serialization.get_safe_globals())
    torch.serialization.add_safe_globals(list(functions))
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _vet_zip(file: BinaryIO, size: int, records: Mapping[str, Record]) -> None:
    """Check the pickle of a zip."""
    pickled = records['data.pkl']
    file.seek(pickled.start)
    storages = {k.removeprefix('data/'): r.size for k, r in records.items() if 'data/' in k}
    _, end = vet_pickle(file.read(pickled.size), 0, size, storages)
    if end != pickled.size:
        raise damaged('something follows its pickle')


def _vet_legacy(file: BinaryIO, size: int) -> None:
    """Check a file of torch before 1.6: five pickles, then the bytes of the storages."""
    file.seek(0)
    head = file.read(_LONGEST_HEAD)
    if _is_tar(head):
        raise holds_code('pickles in a tar (the format of torch 0.1)')
    if not head.startswith(_MAGIC):
        raise damaged('it is neither a zip nor a pickle of torch.save')
    storages: dict[str, int] = {}
    at = 0
    for _ in range(4):  # the magic number, the version, the machine, the checkpoint
        _, at = vet_pickle(head, at, size, storages, declaring=True)
    keys, at = vet_pickle(head, at, size, {})
    if sorted(map(str, expect(keys, 'list').value)) != sorted(storages):
        raise forged('its list of storages is not that of its tensors')
    for key in keys.value:
        file.seek(at)
        elements = int.from_bytes(file.read(8), 'little')
        length = storages[key]
        if elements > length or (elements == 0) != (length == 0) or length % max(elements, 1):
            raise forged(f'its storage {key[:40]!a} is said to have {elements:,} elements')
        at += 8 + length
    if at != size:
        raise damaged('its storages and its size do not agree')


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], 'utf-8', 'surrogateescape')
    except tarfile.HeaderError:
        return False
    return True


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    safetensors = _safetensors(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise not_safetensors(first_line(error)) from error
    return {name: tensor.to(map_location) for name, tensor in tensors.items()}


def _safetensors(path: Path) -> ModuleType:
    # Here and not above: the model itself runs with torch and mmengine alone.
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f'{path} needs safetensors: pip install safetensors') from error
    return safetensors
