"""The calls in a checkpoint's pickle: which there may be, and what each builds.

torch.save and mmengine write these calls with these arguments; anything else is refused. Nothing
is looked up by a name from the file: each call has a function here.
"""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn

from .refusals import forged, holds_code

_KEY_BITS = 60  # integers within them have different hashes
_MOST = 1 << 48  # of what counts elements
_DIMENSIONS = 32
_STORAGES = {
    'Double': torch.float64, 'Float': torch.float32, 'Half': torch.float16,
    'BFloat16': torch.bfloat16, 'Long': torch.int64, 'Int': torch.int32, 'Short': torch.int16,
    'Char': torch.int8, 'Byte': torch.uint8, 'Bool': torch.bool, 'ComplexFloat': torch.complex64,
    'ComplexDouble': torch.complex128,
}  # fmt: skip
# Types of elements, by the name of a storage and by their own.
STORAGES = {f'torch.{name}Storage': dtype for name, dtype in _STORAGES.items()}
STORAGES |= {'torch.storage.UntypedStorage': torch.uint8}
_NUMBERS = re.compile(r'torch\.(bool|(u?int|b?float|complex)(8|16|32|64|128)(_e\w+)?)')
DTYPES = {str(v): v for v in vars(torch).values() if isinstance(v, torch.dtype)}
DTYPES = {name: dtype for name, dtype in DTYPES.items() if _NUMBERS.fullmatch(name)}
_NUMPY_DTYPES = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')


class Name(str):
    """A function or a class that the pickle names."""


class Method(str):
    """A method of the log buffer, by its name: every buffer is saved with references to them."""


class Unfinished(str):
    """An object that has no state yet; what it will be."""


ARRAY = Name('numpy.ndarray')
BUFFER = Name('mmengine.logging.history_buffer.HistoryBuffer')


@dataclass(frozen=True, slots=True)
class Storage:
    """The elements that tensors share."""

    data: Tensor  # of bytes
    dtype: torch.dtype
    count: int


def call(name: str, values: tuple[Any, ...]) -> Any:
    """Return what a call builds.

    Raises:
        Refused: Neither torch.save nor mmengine writes this call.
    """
    for arguments, build in _CALLS.get(name, ()):
        if fit_types(values, arguments) and (result := build(*values)) is not None:
            return result
    more = ', ...' if len(values) > 3 else ''
    raise holds_code(f'a call of {name}({", ".join(map(show, values[:3]))}{more})')


def with_state(target: Any, state: Any) -> Any:
    """Return an object with the state that the pickle gives it.

    Raises:
        Refused: It never has this state.
    """
    result: Any = None
    if type(target) is OrderedDict and type(state) is dict and set(state) <= {'_metadata'}:
        # What a module's state dict carries; any other attribute could stand before a method.
        vars(target).update(state)
        result = target
    elif isinstance(target, np.dtype):
        known = [(3, order, None, None, None, -1, -1, 0) for order in '<|=']
        result = target if any(fit_types(state, form) for form in known) else None
    elif fit_types((target, state), (Unfinished('buffer'), dict)):
        result = _buffer(**state)
    elif target == 'array' and fit_types(state, (1, tuple, np.dtype, bool, bytes)):
        _, shape, dtype, fortran, data = state
        if len(shape) <= _DIMENSIONS and min(shape, default=0) >= 0:
            values = np.frombuffer(data, dtype)
            result = values.reshape(shape, order='F' if fortran else 'C').copy('K')
    if result is None:
        raise holds_code(f'{show(target)} in a state that it never has')
    return result


def fit_types(values: Any, forms: tuple[Any, ...]) -> bool:
    """Whether values are what a call takes.

    Args:
        values: A tuple, or something else that does not fit.
        forms: For each value a type, which must be its very own, or what it must be equal to.
    """
    return (
        type(values) is tuple
        and len(values) == len(forms)
        and all(
            (type(value) is form or (form is np.dtype and isinstance(value, np.dtype)))
            if isinstance(form, type)
            else (type(value) is type(form) and value == form)
            for value, form in zip(values, forms, strict=True)
        )
    )


def check_key(item: Any) -> Any:
    """Return a key of a dict or a set; refuse those whose hash could take for ever."""
    if type(item) in (str, bool, type(None)) or (type(item) is int and abs(item) < 1 << _KEY_BITS):
        return item
    raise holds_code(f'{show(item)} as a key')


def show(item: Any) -> str:
    """Name an item in a message."""
    if type(item) in (str, int, float, bool, type(None)):
        return ascii(item[:40] if isinstance(item, str) else item)[:60]
    if isinstance(item, str):  # a name, which is one of ours
        return str(item)
    return f'<{type(item).__name__}>'


def _tensor(
    storage: Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    grad: bool,
    hooks: object,
    dtype: torch.dtype | None = None,
) -> Tensor | None:
    sides = (*size, *stride)
    if len(size) != len(stride) or len(size) > _DIMENSIONS or set(map(type, sides)) - {int}:
        return None
    dtype = dtype or storage.dtype
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    elements = prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # The last one also refuses dimensions repeated by a stride of 0: copied, they are any size.
    if any(not 0 <= n < _MOST for n in (offset, *sides)) or (
        elements and (last >= count or elements > count)
    ):
        raise forged(f'it has a tensor of shape {size[:8]} in a storage of {count:,} elements')
    tensor = torch.empty(0, dtype=dtype, device=storage.data.device)
    return tensor.set_(storage.data.untyped_storage(), offset, size, stride).requires_grad_(grad)


def _parameter(tensor: Tensor, grad: bool, hooks: object) -> nn.Parameter:
    return nn.Parameter(tensor, grad)


def _bytes(text: str, encoding: str) -> bytes:
    return bytes(text, 'latin-1')


def _method(owner: Name, name: str) -> Method | None:
    return Method(name) if name in ('min', 'max', 'mean', 'current') else None


def _numpy_dtype(name: str, align: object, copy: object) -> np.dtype[Any] | None:
    return np.dtype(name) if name in _NUMPY_DTYPES else None


def _unfinished_array(kind: Name, shape: object, code: object) -> Unfinished:
    return Unfinished('array')


def _scalar(dtype: np.dtype[Any], data: bytes) -> Any:
    return np.frombuffer(data, dtype, count=1)[0]


def _buffer(
    max_length: Any,
    _log_history: Any,
    _count_history: Any,
    statistics_methods: Any = None,
) -> HistoryBuffer | None:
    methods = statistics_methods or {}
    if (
        not fit_types((max_length, _log_history, _count_history), (int, np.ndarray, np.ndarray))
        or _log_history.ndim != 1
        or _log_history.shape != _count_history.shape
        or len(_log_history) > max_length
        # Unpickling would put them into the class's own table.
        or type(methods) is not dict
        or any(type(method) is not Method or method != name for name, method in methods.items())
    ):
        return None
    return HistoryBuffer(_log_history, _count_history, max_length)


_NO_HOOKS: OrderedDict[Any, Any] = OrderedDict()
_TENSOR = (Storage, int, tuple, tuple, bool, _NO_HOOKS)
# For each call the arguments that it may have, as `fit_types` takes them, and what builds it.
_CALLS: dict[str, tuple[tuple[tuple[Any, ...], Callable[..., Any]], ...]] = {
    'torch._utils._rebuild_tensor_v2': ((_TENSOR, _tensor),),
    'torch._utils._rebuild_tensor_v3': (((*_TENSOR, torch.dtype), _tensor),),
    'torch._utils._rebuild_parameter': (((Tensor, bool, _NO_HOOKS), _parameter),),
    'torch.Size': (((tuple,), torch.Size),),
    'torch.device': (((str,), torch.device), ((str, int), torch.device)),
    'collections.OrderedDict': (((), OrderedDict),),
    'collections.Counter': (((dict,), Counter),),
    'builtins.set': (((list,), lambda items: set(map(check_key, items))),),
    # This is how bytes are written; other encodings may grow what they encode.
    '_codecs.encode': (((str, 'latin1'), _bytes), ((str, 'latin-1'), _bytes)),
    'builtins.bytes': (((), bytes),),
    'builtins.getattr': (((BUFFER, str), _method),),
    'numpy.dtype': (((str, False, True), _numpy_dtype), ((str, 0, 1), _numpy_dtype)),
    'numpy.core.multiarray._reconstruct': (((ARRAY, (0,), b'b'), _unfinished_array),),
    'numpy.core.multiarray.scalar': (((np.dtype, bytes), _scalar),),
}
NAMES = {*_CALLS, *STORAGES, ARRAY, BUFFER}
