"""A pickle machine that builds tensors and plain data, and nothing else.

It knows the instructions that torch.save uses and the calls of `calls`, and counts the memory of
what it builds. So a file can neither run anything nor take much more memory than its size.
"""

from __future__ import annotations

import io
import pickletools
import re
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Tensor

from .calls import (
    BUFFER,
    DTYPES,
    NAMES,
    STORAGES,
    Method,
    Name,
    Storage,
    Unfinished,
    call,
    check_key,
    fit_types,
    show,
    with_state,
)
from .refusals import Refused, damaged, forged, holds_code

_FLOOR = 32 << 20  # bytes that the objects of any file may take
_DEEPEST = 64  # containers in containers
_MOST_OBJECTS = 1 << 24  # of a whole tree, shared parts counted each time
_WIDE = re.compile(rb'[\xc4-\xff]')  # in UTF-8, of characters of more than one byte in memory
_LONGEST_WIDE_TEXT = 1 << 20  # bytes
_LONGEST_TEXT = 16 << 20  # bytes; more than mmengine writes of a million logged values
_LOCATION = re.compile(r'(cpu|meta|mps|cuda|npu|xpu|hpu|xla|mlu|musa)(:\d{1,4})?')
# Protocol 2 has Python 2's names; numpy 2 moved its core.
_RENAMED = {'__builtin__': 'builtins', 'numpy._core.multiarray': 'numpy.core.multiarray'}
# Bytes of an object that a call builds, about; what grows with its arguments is counted there.
_COSTS: dict[type, int] = {Tensor: 800, OrderedDict: 250, HistoryBuffer: 600}


@dataclass(eq=False, slots=True)
class _Built:
    """An object on the stack that is no plain number or text.

    Attributes:
        value: The object.
        depth: Containers in it, the longest chain.
        size: Objects in it, shared ones counted each time.
        closed: It is part of another object and must not change any more, or it could come to
            contain itself.
        code: What is in it that is not data; calls take such arguments, a checkpoint has none.
    """

    value: Any
    depth: int = 1
    size: int = 1
    closed: bool = False
    code: str | None = None


def unpickle(
    data: bytes, at: int, size: int, storage: Callable[[str, int], Tensor], old: bool = False
) -> tuple[Any, int]:
    """Build the object of one pickle.

    Args:
        data: What the pickle is in.
        at: Where it starts.
        size: Bytes of the whole file.
        storage: Returns the bytes of a tensor's storage, given its key and how many there are.
        old: The file is of torch before 1.6.

    Returns:
        The object, and where the pickle ends.

    Raises:
        Refused: It is broken, holds something else than tensors and plain data, or would take much
            more memory than the file.
    """
    file = _Pickle(data)
    file.seek(at)
    machine = _Machine(size, len(data) - at, storage, old)
    try:
        for number, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if (instruction.name == 'PROTO') != (number == 0):
                raise damaged('its pickle is broken')
            machine.step(instruction.name, argument)
        return machine.result(), file.tell()
    except (struct.error, LookupError, ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise damaged('its pickle is broken') from error


class _Pickle(io.BytesIO):
    """The bytes of a pickle; reading none but short texts, and those that take their own size."""

    def read(self, length: int | None = -1, /) -> bytes:
        if length and length > _LONGEST_TEXT:
            raise forged(f'its pickle has a text of {length:,} bytes')
        data = super().read(length)
        # One rare character makes all take four bytes; only logged values are long, and have none.
        if len(data) > _LONGEST_WIDE_TEXT and _WIDE.search(data):
            raise forged(f'its pickle has a text of {length:,} bytes')
        return data


class _Machine:
    def __init__(
        self, size: int, pickled: int, storage: Callable[[str, int], Tensor], old: bool
    ) -> None:
        # Bytes that may still be taken: by objects (the pickle itself and the texts from it are in
        # memory too), by logged values as bytes and as an array, and by tensors if all are copied.
        self.left = {
            'objects': max(max(size // 2, _FLOOR) - pickled // 2, _FLOOR // 4),
            'arrays': 2 * pickled,
            'tensors': max(2 * size, _FLOOR),
        }
        self.storage, self.old = storage, old
        self.storages: dict[str, Tensor] = {}
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Follow an instruction; they are named as in the standard library's pickletools."""
        # The frequent ones come first.
        self.take(8)
        match instruction:
            case 'BINPUT' | 'LONG_BINPUT':
                self.take(0 if argument in self.memo else 120)
                self.memo[argument] = self.stack[-1]
            case 'BINGET' | 'LONG_BINGET':
                self.push(self.memo[argument], 8)
            case 'BININT' | 'BININT1' | 'BININT2' | 'BINFLOAT' | 'LONG1':
                self.push(argument, 60)
            case 'BINUNICODE':
                self.push(argument, sys.getsizeof(argument))
            case 'NONE' | 'NEWTRUE' | 'NEWFALSE':
                self.push({'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}[instruction], 8)
            case 'MARK':
                self.take(100)
                self.marks.append(self.stack)
                self.stack = []
            case 'EMPTY_LIST':
                self.push(_Built([]), 200)
            case 'EMPTY_DICT':
                self.push(_Built({}), 250)
            case 'APPEND':
                self.extend([self.stack.pop()])
            case 'APPENDS':
                self.extend(self.since_mark())
            case 'SETITEM':
                value, key = self.stack.pop(), self.stack.pop()
                self.update([key, value])
            case 'SETITEMS':
                self.update(self.since_mark())
            case 'EMPTY_TUPLE' | 'TUPLE1' | 'TUPLE2' | 'TUPLE3':
                length = 0 if instruction == 'EMPTY_TUPLE' else int(instruction[-1])
                self.make_tuple([self.stack.pop() for _ in range(length)][::-1])
            case 'TUPLE':
                self.make_tuple(self.since_mark())
            case 'GLOBAL':
                self.find(*argument.split(' ', 1))
            case 'REDUCE':
                self.reduce()
            case 'NEWOBJ':
                arguments, kind = self.pop(tuple), self.pop(Name)
                if kind != BUFFER or arguments:
                    raise holds_code(f'an object of {kind}')
                self.push(_Built(Unfinished('buffer'), code=kind), 600)
            case 'BUILD':
                self.build()
            case 'BINPERSID':
                self.refer(self.pop(tuple))
            case 'PROTO' if argument != 2:
                raise Refused(
                    f'it is a pickle of protocol {argument}, not one of torch.save; save it again '
                    'with torch.save and its default protocol'
                )
            case 'PROTO' | 'STOP':
                pass
            case _:
                raise damaged(f'its pickle has an instruction {instruction}')

    def result(self) -> Any:
        [result] = self.contain(_Built(None), self.stack)
        return result

    def take(self, cost: int, what: str = 'objects') -> None:
        self.left[what] -= cost
        if self.left[what] < 0:
            raise forged(f'its pickle builds more {what} than its size accounts for')

    def push(self, item: Any, cost: int) -> None:
        self.take(cost)
        self.stack.append(item)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def top(self, *kinds: type) -> _Built:
        target = self.stack[-1]
        if not isinstance(target, _Built) or type(target.value) not in kinds:
            raise holds_code(f'{show(_value(target))} in place of <{kinds[0].__name__}>')
        return target

    def pop(self, kind: type) -> Any:
        """Take an object of just this type, and return its value."""
        value = self.top(kind).value
        self.stack.pop()
        return value

    def contain(self, built: _Built, items: list[Any], code: bool = False) -> list[Any]:
        """Make items parts of an object, and return their values.

        Args:
            built: The object.
            items: From the stack.
            code: There may be what is not data among them.
        """
        for item in items:
            if isinstance(item, _Built):
                item.closed = True
                built.depth = max(built.depth, item.depth + 1)
                built.size += item.size
                built.code = built.code or item.code
        built.size += len(items)
        if built.closed:
            raise forged('its pickle changes an object that is part of another')
        if built.depth > _DEEPEST:
            raise forged(f'its pickle has more than {_DEEPEST} containers in one another')
        if built.size > _MOST_OBJECTS:
            raise forged('its pickle repeats itself without end')
        if built.code and not code:
            raise holds_code(f'{built.code} as a value')
        return [_value(item) for item in items]

    def extend(self, items: list[Any]) -> None:
        self.take(16 * len(items))
        target = self.top(list)
        target.value.extend(self.contain(target, items))

    def update(self, items: list[Any]) -> None:
        self.take(120 * len(items))
        target = self.top(dict, OrderedDict)
        values = self.contain(target, items, code=True)  # the table of a log buffer's methods
        target.value.update(zip(map(check_key, values[::2]), values[1::2], strict=True))

    def make_tuple(self, items: list[Any]) -> None:
        built = _Built(None)
        built.value = tuple(self.contain(built, items, code=True))
        self.push(built, 140 + 8 * len(items))

    def find(self, module: str, attribute: str) -> None:
        name = f'{_RENAMED.get(module, module)}.{attribute}'
        if name not in NAMES and name not in DTYPES:
            raise holds_code(ascii(name[:200]))
        self.push(DTYPES.get(name) or _Built(Name(name), code=name), 150)

    def reduce(self) -> None:
        arguments = self.stack[-1]
        values = self.pop(tuple)
        for value in values:
            if type(value) in (list, dict):
                self.take(120 * len(value))
        result = call(self.pop(Name), values)
        built = _Built(result)
        self.contain(built, [arguments], code=True)
        built.code = show(result) if type(result) in (Method, Unfinished) else None
        self.count(result)
        self.push(built, _COSTS.get(type(result), 150))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, _Built):
            raise holds_code(f'{show(target)} in a state that it never has')
        target.code = None
        # Only a log buffer's state holds what is not data.
        [value] = self.contain(target, [state], code=target.value == Unfinished('buffer'))
        target.value, target.code = with_state(target.value, value), None
        self.count(target.value)

    def count(self, value: Any) -> None:
        """Count what tensors and arrays take besides the object itself."""
        if type(value) is Tensor:
            self.take(value.nelement() * value.element_size(), 'tensors')
        elif type(value) is np.ndarray or type(value) is bytes:
            self.take(value.nbytes if type(value) is np.ndarray else len(value), 'arrays')

    def refer(self, identity: tuple[Any, ...]) -> None:
        views = (None,) if self.old else ()  # before torch 1.6 a view of it could be meant
        if not fit_types(identity, ('storage', Name, str, str, int, *views)):
            raise holds_code('a reference that is not one to a tensor')
        _, kind, key, location, count = identity[:5]
        if kind not in STORAGES or count < 0:
            raise holds_code('a reference that is not one to a tensor')
        if not _LOCATION.fullmatch(location):
            raise forged(f'it has a tensor on {location[:40]!a}')
        length = count * STORAGES[kind].itemsize
        if key not in self.storages:
            self.storages[key] = self.storage(key, length)
        data = self.storages[key]
        if len(data) != length:
            raise forged(
                f'its storage {key[:40]!a} of {len(data):,} bytes is said to have {length:,}'
            )
        self.push(_Built(Storage(data, STORAGES[kind], count), code='a storage'), 200)


def _value(item: Any) -> Any:
    return item.value if isinstance(item, _Built) else item
