"""Reading a checkpoint file without running what it contains."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.logging import HistoryBuffer


class CheckpointError(ValueError):
    """A checkpoint that can't be read or doesn't fit the model."""


def read_checkpoint(source: str | Path, map_location: str | torch.device = 'cpu') -> Any:
    """Read a checkpoint from a path or URL with torch's restricted unpickler.

    Args:
        source: A local path, or an http(s) URL, which is kept in torch.hub's checkpoint folder.
        map_location: Where tensors go, as for `torch.load`.

    Raises:
        CheckpointError: The file is missing, can't be downloaded, or isn't a checkpoint.
    """
    path = _download(str(source)) if str(source).startswith(('http://', 'https://')) else source
    path = Path(path).expanduser()
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} does not exist; give the path of a .pth file')
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
            f'torch.save ({_first_line(error)})'
        ) from error


def _download(url: str) -> Path:
    folder = Path(torch.hub.get_dir()) / 'checkpoints'
    path = folder / Path(urlparse(url).path).name
    if get_local_rank() == 0 and not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(path))
        except (URLError, OSError) as error:
            raise CheckpointError(
                f'{url} could not be downloaded ({_first_line(error)}); fetch it elsewhere, then '
                f'put it at {path} or give its path instead of the URL'
            ) from error
    barrier()
    return path


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


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
