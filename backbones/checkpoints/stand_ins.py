"""The objects of a checkpoint's pickle: which there may be, and what each is made from.

torch.save and mmengine call these constructors with these arguments and give objects these states;
anything else is refused. Each function takes stand-ins (`Node`) and plain values, checks them and
returns the stand-in of the result, or None for what is never written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from .errors import forged, holds_code

# Objects may take this many bytes, or half of the file where that is more.
FLOOR = 32 << 20
_KEY_BITS = 60  # within them different keys have different hashes
LOCATION = re.compile(r'(cpu|meta|mps|cuda|npu|xpu|hpu|xla|mlu|musa)(:\d{1,4})?')
_STORAGES = {
    'Double': 8, 'Float': 4, 'Half': 2, 'BFloat16': 2, 'Long': 8, 'Int': 4, 'Short': 2, 'Char': 1,
    'Byte': 1, 'Bool': 1, 'ComplexFloat': 8, 'ComplexDouble': 16,
}  # fmt: skip
# Bytes of an element by the name of the type.
STORAGES = {f'torch.{name}Storage': width for name, width in _STORAGES.items()}
STORAGES |= {'torch.storage.UntypedStorage': 1}
_NUMBERS = re.compile(r'torch\.(bool|(u?int|b?float|complex)(8|16|32|64|128)(_e\w+)?)')
DTYPES = {str(v): v.itemsize for v in vars(torch).values() if isinstance(v, torch.dtype)}
DTYPES = {name: width for name, width in DTYPES.items() if _NUMBERS.fullmatch(name)}
NUMPY_DTYPES = ('f2', 'f4', 'f8', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'b1')
BUFFER = 'mmengine.logging.history_buffer.HistoryBuffer'
# Bytes of an object that a call makes, about; what grows with its arguments is counted there.
COSTS = {'tensor': 700, 'ordered': 250, 'buffer': 600}
BUFFER_METHODS = ('min', 'max', 'mean', 'current')


@dataclass(eq=False, slots=True)
class Node:
    """A stand-in for an object that is not a plain number or text.

    Attributes:
        kind: What it stands for.
        value: What of it is checked later.
        depth: Containers in it, the longest chain.
        size: Objects in it, shared ones counted each time.
        closed: It is part of another object and must not change any more, or it could come to
            contain itself.
    """

    kind: str
    value: Any = None
    depth: int = 1
    size: int = 1
    closed: bool = False


class Room:
    """The memory that a file's content may take besides its tensors.

    Args:
        size: Bytes of the file.
        pickled: Bytes of its pickle.
    """

    def __init__(self, size: int, pickled: int) -> None:
        # The pickle itself and the texts from it are in memory too.
        self._objects = max(max(size // 2, FLOOR) - pickled // 2, FLOOR // 4)
        self._views = max(2 * size, FLOOR)
        self._arrays = 2 * pickled  # logged values, as bytes and as an array

    def take(self, cost: int) -> None:
        """Count an object."""
        self._objects -= cost
        if self._objects < 0:
            raise forged('its pickle builds more objects than its size accounts for')

    def take_array(self, length: int) -> None:
        """Count bytes that become, or are, an array."""
        self._arrays -= length
        if self._arrays < 0:
            raise forged('its pickle repeats its arrays')

    def take_view(self, length: int) -> None:
        """Count a tensor, which may share its memory with others."""
        self._views -= length
        if self._views < 0:
            raise forged('its tensors are together much larger than the file')


def is_kind(item: Any, *kinds: str) -> bool:
    """Whether an item is a stand-in of one of these kinds."""
    return isinstance(item, Node) and item.kind in kinds


def expect(item: Any, *kinds: str) -> Node:
    """Return a stand-in of one of these kinds, or refuse the file."""
    if not is_kind(item, *kinds):
        raise holds_code(f'{show(item)} in place of <{" or ".join(kinds)}>')
    return item


def plain(kind: type, *items: Any) -> bool:
    """Whether all items are plain values of just this type."""
    return all(type(item) is kind for item in items)


def check_key(item: Any) -> Any:
    """Return a key of a dict or a set; refuse those whose hash could take for ever."""
    if isinstance(item, (str, bool, type(None))):
        return item
    if type(item) is int and abs(item) >> _KEY_BITS == 0:
        return item
    raise holds_code(f'{show(item)} as a key')


def show(item: Any) -> str:
    """Name an item in a message."""
    if isinstance(item, Node):
        return item.value if item.kind == 'global' else f'<{item.kind}>'
    return ascii(item[:40] if isinstance(item, str) else item)[:60]


def construct(room: Room, name: str, values: tuple) -> Node:
    """Return what a call makes.

    Raises:
        Refused: Neither torch.save nor mmengine writes this call.
    """
    counts, function = _CONSTRUCTORS.get(name, ((), None))
    result = function(room, *values) if len(values) in counts else None
    if result is None:
        more = ', ...' if len(values) > 3 else ''
        raise holds_code(f'a call of {name}({", ".join(map(show, values[:3]))}{more})')
    return result


def set_state(room: Room, target: Any, state: Any) -> Node:
    """Give an object its state; return it.

    Raises:
        Refused: It never has this state.
    """
    check = _STATES.get(target.kind if isinstance(target, Node) else '')
    if check is None or not check(room, target, state):
        raise holds_code(f'{show(target)} in a state that it never has')
    return target


def _tensor(room, storage, offset, size, stride, grad, hooks, dtype=None) -> Node | None:
    count, width = expect(storage, 'storage').value
    size, stride = expect(size, 'tuple').value, expect(stride, 'tuple').value
    if len(size) != len(stride) or len(size) > 64:
        return None
    numbers = (offset, *size, *stride)
    if not plain(int, *numbers) or not plain(bool, grad) or not _is_empty(hooks):
        return None
    if dtype is not None:
        width, before = DTYPES.get(expect(dtype, 'global').value), width
        if not width:
            return None
        count = count * before // width
    elements = prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # The last one also refuses dimensions repeated by a stride of 0: copied, they are any size.
    if any(not 0 <= n < 1 << 48 for n in numbers) or (
        elements and (last >= count or elements > count)
    ):
        raise forged(f'it has a tensor of shape {size[:8]} in a storage of {count:,} elements')
    room.take_view(elements * width)
    return Node('tensor')


def _parameter(room, tensor, grad, hooks) -> Node | None:
    expect(tensor, 'tensor')
    return Node('tensor') if plain(bool, grad) and _is_empty(hooks) else None


def _ordered(room) -> Node:
    return Node('ordered', {})


def _counter(room, counts) -> Node | None:
    counts = expect(counts, 'dict').value
    room.take(120 * len(counts))
    return Node('counter') if plain(int, *counts, *counts.values()) else None


def _set(room, items) -> Node:
    items = expect(items, 'list').value
    room.take(120 * len(items))
    for item in items:
        check_key(item)
    return Node('set')


def _size(room, sizes) -> Node | None:
    sizes = expect(sizes, 'tuple').value
    return Node('size') if len(sizes) <= 64 and plain(int, *sizes) else None


def _device(room, kind, index=0) -> Node | None:
    fits = plain(str, kind) and LOCATION.fullmatch(kind) and plain(int, index)
    return Node('device') if fits else None


def _bytes(room, text, encoding) -> Node | None:
    # This is how bytes are written; other encodings may grow what they encode.
    if not plain(str, text) or encoding not in ('latin1', 'latin-1'):
        return None
    room.take_array(len(text))
    return Node('bytes', (len(text), text[:1]))


def _no_bytes(room) -> Node:
    return Node('bytes', (0, ''))


def _buffer_method(room, owner, name) -> Node | None:
    own = is_kind(owner, 'global') and owner.value == BUFFER
    return Node('method', name) if own and name in BUFFER_METHODS else None


def _dtype(room, name, align, copy) -> Node | None:
    # Without a copy, its state would be that of numpy's own.
    fits = name in NUMPY_DTYPES and align in (0, False) and copy in (1, True)
    return Node('dtype', int(name[1:])) if fits else None


def _array(room, kind, shape, code) -> Node | None:
    fits = expect(kind, 'global').value == 'numpy.ndarray'
    fits = fits and expect(shape, 'tuple').value == (0,)
    return Node('array') if fits and expect(code, 'bytes').value == (1, 'b') else None


def _scalar(room, dtype, data) -> Node | None:
    fits = expect(data, 'bytes').value[0] == expect(dtype, 'dtype').value
    return Node('scalar') if fits else None


def _array_state(room: Room, target: Node, state: Any) -> bool:
    values = expect(state, 'tuple').value
    if len(values) != 5 or target.value is not None:
        return False
    version, shape, dtype, fortran, data = values
    shape, width = expect(shape, 'tuple').value, expect(dtype, 'dtype').value
    length = expect(data, 'bytes').value[0]
    room.take_array(length)
    target.value = shape
    return (
        len(shape) <= 32
        and plain(int, version, *shape)
        and plain(bool, fortran)
        and version == 1
        and all(0 <= n < 1 << 48 for n in shape)
        and prod(shape) * width == length
    )


def _dtype_state(room: Room, target: Node, state: Any) -> bool:
    values = expect(state, 'tuple').value
    return values[1:] in [(sign, None, None, None, -1, -1, 0) for sign in '<|='] and values[0] == 3


def _ordered_state(room: Room, target: Node, state: Any) -> bool:
    # What a module's state dict carries; any other attribute could stand before a method.
    state = expect(state, 'dict').value
    metadata = state.get('_metadata')
    return not state or (len(state) == 1 and is_kind(metadata, 'ordered', 'dict'))


def _buffer_state(room: Room, target: Node, state: Any) -> bool:
    state = dict(expect(state, 'dict').value) if target.value is None else {}
    methods = state.pop('statistics_methods', Node('dict', {}))
    arrays = [state.pop(name, None) for name in ('_log_history', '_count_history')]
    target.value = plain(int, state.pop('max_length', None)) and not state
    return (
        target.value
        and all(is_kind(a, 'array') and len(a.value or ()) == 1 for a in arrays)
        and arrays[0].value == arrays[1].value
        # It becomes the class's own table.
        and all(
            is_kind(method, 'method') and method.value == name
            for name, method in expect(methods, 'dict').value.items()
        )
    )


def _is_empty(item: Any) -> bool:
    return is_kind(item, 'ordered') and not item.value


# How many arguments, and the check. None: a name that is only an argument of others.
_CONSTRUCTORS: dict[str, tuple[tuple[int, ...], Callable[..., Node | None] | None]] = {
    'torch._utils._rebuild_tensor_v2': ((6,), _tensor),
    'torch._utils._rebuild_tensor_v3': ((7,), _tensor),
    'torch._utils._rebuild_parameter': ((3,), _parameter),
    'torch.Size': ((1,), _size),
    'torch.device': ((1, 2), _device),
    'collections.OrderedDict': ((0,), _ordered),
    'collections.Counter': ((1,), _counter),
    'builtins.set': ((1,), _set),
    '_codecs.encode': ((2,), _bytes),
    'builtins.bytes': ((0,), _no_bytes),
    'builtins.getattr': ((2,), _buffer_method),
    'numpy.dtype': ((3,), _dtype),
    'numpy.core.multiarray._reconstruct': ((3,), _array),
    'numpy.core.multiarray.scalar': ((2,), _scalar),
    'numpy.ndarray': ((), None),
    BUFFER: ((), None),
}
_STATES: dict[str, Callable[[Room, Node, Any], bool]] = {
    'array': _array_state,
    'dtype': _dtype_state,
    'ordered': _ordered_state,
    'buffer': _buffer_state,
}
NAMES = frozenset(_CONSTRUCTORS) | frozenset(STORAGES) | frozenset(DTYPES)
