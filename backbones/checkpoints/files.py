"""Reading a checkpoint file without running what it contains; writing one whole."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .download import fetch
from .errors import CheckpointError, first_line


def read_checkpoint(source: str | Path, map_location: str | torch.device = 'cpu') -> Any:
    """Read a checkpoint: ``.safetensors``, or anything else with torch's restricted unpickler.

    Args:
        source: A path, an http(s) URL, or the name of released weights such as
            ``poolformer_s12``; a download is kept in torch.hub's checkpoint folder.
        map_location: Where tensors go, as for `torch.load`.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, has another checksum than it
            had, or isn't a checkpoint.
    """
    path = fetch(source)
    if path.suffix == '.safetensors':
        return _read_safetensors(path, map_location)
    try:
        with torch.serialization.safe_globals(_numeric_globals()):
            return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        objects = ('GLOBAL', 'Unsupported class', 'Trying to call reduce')
        if any(word in str(error) for word in objects):
            reason = 'it holds objects other than tensors and plain data, which are never run'
        else:
            reason = 'it is not a file written by torch.save'
        raise CheckpointError(f'checkpoint {path} was not loaded: {reason}') from error
    except (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(
            f'checkpoint {path} was not loaded: the file is truncated or is not one written by '
            f'torch.save ({first_line(error)})'
        ) from error


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
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        if path.suffix == '.safetensors':
            partial.write_bytes(_safetensors(path).torch.save(tensors, metadata={'format': 'pt'}))
        else:
            torch.save({wrapper: tensors} if wrapper else tensors, partial)
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f'{path} could not be written ({first_line(error)})') from error
    finally:
        partial.unlink(missing_ok=True)


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    safetensors = _safetensors(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f'checkpoint {path} was not loaded: the file is truncated or is not in the '
            f'safetensors format ({first_line(error)})'
        ) from error
    return {name: tensor.to(map_location or 'cpu') for name, tensor in tensors.items()}


def _safetensors(path: Path) -> ModuleType:
    # Here and not above: the model itself runs with torch and mmengine alone.
    try:
        import safetensors.torch
    except ImportError as error:
        raise CheckpointError(f'{path} needs safetensors: pip install safetensors') from error
    return safetensors


def _history_buffer_method(owner: type, name: str) -> Callable:
    if owner is not HistoryBuffer or name not in ('min', 'max', 'mean', 'current'):
        raise pickle.UnpicklingError(f'Unsupported global: getattr({owner!r}, {name!r})')
    return getattr(owner, name)


# mmengine pickles a log buffer with references to its own four methods, spelled as getattr calls.
# This takes the place of getattr while a checkpoint is read and gives out those four alone.
_history_buffer_method.__module__ = 'builtins'
_history_buffer_method.__name__ = _history_buffer_method.__qualname__ = 'getattr'


def _numeric_globals() -> list[Callable]:
    """What mmengine's checkpoints contain besides tensors: numpy arrays of logged values."""
    core = np._core if hasattr(np, '_core') else np.core
    dtypes = {type(np.dtype(name)) for name in ('f4', 'f8', 'i4', 'i8', 'u1', 'u4', 'bool')}
    return [
        HistoryBuffer,
        _history_buffer_method,
        np.ndarray,
        np.dtype,
        core.multiarray._reconstruct,
        core.multiarray.scalar,
        *dtypes,
    ]
