"""What torch's restricted unpickler may use beyond its own list: mmengine's log buffers.

The vetted file (`vetting`) calls these with few arguments only; even so, none of them can act.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import numpy as np
from mmengine.logging import HistoryBuffer

from .stand_ins import BUFFER_METHODS, NUMPY_DTYPES


def _named(module: str, name: str) -> Callable[[Callable], Callable]:
    """Let a function stand for another; torch finds what is allowed by these attributes."""

    def rename(function: Callable) -> Callable:
        function.__module__ = module
        function.__name__ = function.__qualname__ = name
        return function

    return rename


@_named('builtins', 'getattr')
def _buffer_method(owner: type, name: str) -> Callable:
    # mmengine pickles a log buffer with references to its own methods, spelled as getattr calls.
    if owner is not HistoryBuffer or name not in BUFFER_METHODS:
        raise pickle.UnpicklingError(f'getattr({owner!r}, {name!r})')
    return getattr(owner, name)


@_named('builtins', 'bytes')
def _no_bytes() -> bytes:
    return b''


def _array(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    if kind is not np.ndarray or shape != (0,):
        raise pickle.UnpicklingError(f'an array of {kind!r}')
    return np.ndarray(shape, np.int8)


def _scalar(dtype: np.dtype, data: bytes) -> np.generic:
    if dtype.hasobject:
        raise pickle.UnpicklingError('a scalar of objects')
    return np.frombuffer(data, dtype)[0]


def _numpy_functions() -> list[Callable]:
    # numpy 2 renamed the module that files of either version refer to.
    return [
        _named(f'numpy.{core}.multiarray', name)(lambda *args, function=function: function(*args))
        for core in ('core', '_core')
        for name, function in (('_reconstruct', _array), ('scalar', _scalar))
    ]


ALLOWED: list[Callable] = [
    HistoryBuffer,
    _buffer_method,
    _no_bytes,
    np.ndarray,
    np.dtype,
    *{type(np.dtype(name)) for name in NUMPY_DTYPES},
    *_numpy_functions(),
]
