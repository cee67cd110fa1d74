"""Reading a checkpoint file without running what it contains."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

import torch
from mmengine.runner import CheckpointLoader

from .formats import READERS, check_container
from .refusals import CheckpointError, Refused, damaged, first_line
from .schemes import local_file
from .seal import check_seal


def read_checkpoint(
    source: str | Path, map_location: str | torch.device | None = 'cpu', unsafe: bool = False
) -> Any:
    """Read a checkpoint: ``.safetensors``, or what torch.save writes.

    First its seal is checked, if it has one, and its container. Nothing is ever run that the file
    holds (see `unpickling`), nor more memory taken than twice its size, or 32 MiB for small ones;
    only a log in it takes up to four times its own size.

    Args:
        source: A path, an http(s) URL, the name of released weights such as ``poolformer_s12``, a
            name of mmengine's lists (``torchvision://resnet50``, ``open-mmlab://``, ``mmcls://``).
            A download is kept in torch.hub's checkpoint folder.
        map_location: Where tensors go; None is the CPU.
        unsafe: Run what the file holds. Its seal and its container must still be right.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, has another checksum than it
            had, or isn't a checkpoint of tensors and plain data.
    """
    device = torch.device(map_location or 'cpu')
    with _opened(source) as (path, file, size):
        if check_seal(file) is False:
            raise damaged('its end or its checksum is wrong')
        kind = check_container(file, size, path.suffix)
        run = unsafe and kind != 'safetensors'
        checkpoint = _run(file, device) if run else READERS[kind](file, size, device)
    if str(source).startswith('mmcls://'):
        weights, prefix = checkpoint.get('state_dict', checkpoint), 'backbone.'
        weights = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        return {'state_dict': weights}
    return checkpoint


def check_source(source: str | Path) -> None:
    """Refuse what is not a checkpoint after a look at its container; download it if need be.

    Neither its seal is checked nor its content read, so this costs milliseconds.

    Args:
        source: As for `read_checkpoint`.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, or is something else.
    """
    with _opened(source) as (path, file, size):
        check_container(file, size, path.suffix)


def read_outline(source: str | Path) -> Any:
    """Read a checkpoint as `read_checkpoint` does, its tensors on the meta device.

    Neither its seal is checked nor a tensor read, so the file may still be damaged.

    Args:
        source: As for `read_checkpoint`.

    Raises:
        CheckpointError: As from `read_checkpoint`.
    """
    with _opened(source) as (path, file, size):
        return READERS[check_container(file, size, path.suffix)](file, size, torch.device('meta'))


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


@contextlib.contextmanager
def _opened(source: str | Path) -> Iterator[tuple[Path, BufferedReader, int]]:
    """Give a source's local path, the open file and its bytes; errors name the file."""
    with local_file(source) as path:
        try:
            with path.open('rb') as file:
                yield path, file, file.seek(0, os.SEEK_END)
        except OSError as error:
            raise CheckpointError(
                f'checkpoint {path} was not loaded: it can not be read ({first_line(error)})'
            ) from error
        except Refused as refusal:
            raise CheckpointError(f'checkpoint {path} was not loaded: {refusal}') from refusal


def _run(file: BinaryIO, device: torch.device) -> Any:
    file.seek(0)
    try:
        return torch.load(file, map_location=device, weights_only=False)
    except Exception as error:  # whatever a file or its code comes up with
        raise damaged(f'torch can not read it ({first_line(error)})') from error
