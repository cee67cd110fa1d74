"""What the pickle of a checkpoint would build, found out without building it.

`vet_pickle` goes through the instructions with stand-ins for every object and knows only what
torch.save and mmengine write (`stand_ins`). So of all that torch's restricted unpickler would call,
a file reaches only these few calls, with arguments that make no harm and no more than the file
accounts for.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
from collections.abc import Callable
from typing import Any

from .errors import Refused, damaged, forged, holds_code
from .stand_ins import (
    BUFFER,
    COSTS,
    DTYPES,
    LOCATION,
    NAMES,
    STORAGES,
    Node,
    Room,
    check_key,
    construct,
    expect,
    is_kind,
    plain,
    set_state,
)

_DEEPEST = 64  # containers in containers
_MOST_OBJECTS = 1 << 24  # of a whole tree, shared parts counted each time
_WIDE = re.compile(rb'[\xc4-\xff]')  # in UTF-8, of characters of more than one byte in memory
_LONGEST_WIDE_TEXT = 1 << 20  # bytes
_LONGEST_TEXT = 16 << 20  # bytes; more than mmengine writes of a million logged values


def vet_pickle(
    data: bytes, at: int, size: int, storages: dict[str, int], declaring: bool = False
) -> tuple[Any, int]:
    """Go through one pickle.

    Args:
        data: What it is in.
        at: Where it starts.
        size: Bytes of the whole file.
        storages: Bytes of the tensors' storages by key; the pickle must agree.
        declaring: Put into ``storages`` what the pickle says instead.

    Returns:
        A stand-in for the object, and where the pickle ends.

    Raises:
        Refused: It is broken, holds something else than tensors and plain data, or would take much
            more memory than the file.
    """
    machine = _Machine(data, at, size, storages, declaring)
    try:
        return machine.run(), machine.at
    except (struct.error, IndexError, UnicodeDecodeError) as error:
        raise damaged('its pickle is broken') from error


class _Machine:
    """Instructions are named as in the standard library's pickletools."""

    def __init__(
        self, data: bytes, at: int, size: int, storages: dict[str, int], declaring: bool
    ) -> None:
        self.data, self.at = data, at
        self.storages, self.declaring = storages, declaring
        self.room = Room(size, len(data) - at)
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        start = self.at
        while True:
            code = self.data[self.at]
            self.at += 1
            self.room.take(8)
            if code == pickle.STOP[0]:
                break
            instruction = _INSTRUCTIONS.get(code)
            if instruction is None or (code == pickle.PROTO[0]) != (self.at == start + 1):
                raise damaged(f'its pickle has an instruction {code} at byte {self.at - 1:,}')
            instruction(self)
        if len(self.stack) != 1 or self.marks:
            raise damaged('its pickle ends too early')
        return self.stack.pop()

    def read(self, length: int) -> bytes:
        data = self.data[self.at : self.at + length]
        if len(data) < length:
            raise damaged('its pickle is cut off')
        self.at += length
        return data

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.read(struct.calcsize(form)))[0]

    def push(self, item: Any, cost: int = 40) -> None:
        self.room.take(cost)
        self.stack.append(item)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def contain(self, node: Node, items: list[Any]) -> Node:
        """Make items parts of a node."""
        for item in items:
            if isinstance(item, Node):
                item.closed = True
                node.depth = max(node.depth, item.depth + 1)
                node.size += item.size
        node.size += len(items)
        if node.closed:
            raise forged('its pickle changes an object that is part of another')
        if node.depth > _DEEPEST:
            raise forged(f'its pickle has more than {_DEEPEST} containers in one another')
        if node.size > _MOST_OBJECTS:
            raise forged('its pickle repeats itself without end')
        return node

    def proto(self) -> None:
        if (protocol := self.unpack('B')) != 2:
            raise Refused(
                f'it is a pickle of protocol {protocol}, not one of torch.save; save it anew with '
                'torch.save and its default protocol'
            )

    def mark(self) -> None:
        self.room.take(100)
        self.marks.append(self.stack)
        self.stack = []

    def binunicode(self) -> None:
        length = self.unpack('<I')
        if length > _LONGEST_TEXT:
            raise forged(f'its pickle has a text of {length:,} bytes')
        raw = self.read(length)
        # One rare character makes all take four bytes; only logged values are long, and have none.
        if length > _LONGEST_WIDE_TEXT and _WIDE.search(raw):
            raise forged(f'its pickle has a text of {length:,} bytes')
        text = raw.decode('utf-8', 'surrogatepass')
        self.push(text, 60 + max(0, sys.getsizeof(text) - length))

    def long1(self) -> None:
        self.push(int.from_bytes(self.read(self.unpack('B')), 'little', signed=True), 60)

    def put(self, form: str) -> None:
        index = self.unpack(form)
        self.room.take(0 if index in self.memo else 120)
        self.memo[index] = self.stack[-1]

    def get(self, form: str) -> None:
        index = self.unpack(form)
        if index not in self.memo:
            raise damaged('its pickle refers to what is not there')
        self.push(self.memo[index], 8)

    def make_tuple(self, items: list[Any]) -> None:
        self.push(self.contain(Node('tuple', tuple(items)), items), 100 + 8 * len(items))

    def short_tuple(self, length: int) -> None:
        self.make_tuple([self.stack.pop() for _ in range(length)][::-1])

    def appends(self, items: list[Any]) -> None:
        _refuse_functions(items)
        self.room.take(16 * len(items))
        self.contain(expect(self.stack[-1], 'list'), items).value.extend(items)

    def append(self) -> None:
        item = self.stack.pop()
        self.appends([item])

    def setitems(self, items: list[Any]) -> None:
        if len(items) % 2:
            raise damaged('its pickle has a key without a value')
        _refuse_functions(items)
        self.room.take(120 * len(items))
        keys = map(check_key, items[::2])
        target = self.contain(expect(self.stack[-1], 'dict', 'ordered'), items)
        target.value.update(zip(keys, items[1::2], strict=True))

    def setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.setitems([key, value])

    def find(self) -> None:
        lines = []
        for _ in range(2):
            end = self.data.find(b'\n', self.at, self.at + 256)
            if end < 0:
                raise damaged('its pickle has a name without end')
            lines.append(self.read(end + 1 - self.at)[:-1].decode('utf-8'))
        module, name = lines
        # Protocol 2 has Python 2's names; numpy 2 moved its core.
        module = {'__builtin__': 'builtins', 'numpy._core.multiarray': 'numpy.core.multiarray'}.get(
            module, module
        )
        if f'{module}.{name}' not in NAMES:
            raise holds_code(ascii(f'{module}.{name}'))
        self.push(Node('global', f'{module}.{name}'), 150)

    def reduce(self) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        values = expect(arguments, 'tuple').value
        result = construct(self.room, expect(function, 'global').value, values)
        self.push(self.contain(result, [arguments]), COSTS.get(result.kind, 150))

    def newobj(self) -> None:
        arguments, kind = self.stack.pop(), self.stack.pop()
        if expect(kind, 'global').value != BUFFER or expect(arguments, 'tuple').value:
            raise holds_code(f'an object of {kind.value}')
        self.push(Node('buffer'), COSTS['buffer'])

    def build(self) -> None:
        state = self.stack.pop()
        self.contain(set_state(self.room, self.stack[-1], state), [state])

    def binpersid(self) -> None:
        identity = expect(self.stack.pop(), 'tuple').value
        views = (None,) if self.declaring else ()  # before torch 1.6 a view of it could be meant
        if (
            len(identity) < 5
            or identity[5:] != views
            or identity[0] != 'storage'
            or not is_kind(identity[1], 'global')
        ):
            raise holds_code('a reference that is not one to a tensor')
        _, kind, key, location, count = identity[:5]
        width = STORAGES.get(kind.value)
        if not width or not plain(str, key, location) or not plain(int, count) or count < 0:
            raise holds_code('a reference that is not one to a tensor')
        if not LOCATION.fullmatch(location):
            raise forged(f'it has a tensor on {location[:40]!a}')
        length = count * width
        if self.declaring:
            self.storages.setdefault(key, length)
        if self.storages.get(key) != length:
            have = f'{self.storages[key]:,}' if key in self.storages else 'no'
            raise forged(f'its storage {key[:40]!a} of {have} bytes is said to have {length:,}')
        self.push(Node('storage', (count, width)), 150)


def _refuse_functions(items: list[Any]) -> None:
    """Refuse functions and classes as values; types of numbers are data."""
    for item in items:
        if is_kind(item, 'global') and item.value not in DTYPES:
            raise holds_code(f'{item.value} as a value')


_INSTRUCTIONS: dict[int, Callable[[_Machine], None]] = {
    code[0]: instruction
    for code, instruction in {
        pickle.PROTO: _Machine.proto,
        pickle.MARK: _Machine.mark,
        pickle.GLOBAL: _Machine.find,
        pickle.REDUCE: _Machine.reduce,
        pickle.NEWOBJ: _Machine.newobj,
        pickle.BUILD: _Machine.build,
        pickle.BINPERSID: _Machine.binpersid,
        pickle.APPEND: _Machine.append,
        pickle.APPENDS: lambda m: m.appends(m.since_mark()),
        pickle.SETITEM: _Machine.setitem,
        pickle.SETITEMS: lambda m: m.setitems(m.since_mark()),
        pickle.TUPLE: lambda m: m.make_tuple(m.since_mark()),
        pickle.TUPLE1: lambda m: m.short_tuple(1),
        pickle.TUPLE2: lambda m: m.short_tuple(2),
        pickle.TUPLE3: lambda m: m.short_tuple(3),
        pickle.EMPTY_TUPLE: lambda m: m.make_tuple([]),
        pickle.EMPTY_LIST: lambda m: m.push(Node('list', []), 150),
        pickle.EMPTY_DICT: lambda m: m.push(Node('dict', {}), 200),
        pickle.NONE: lambda m: m.push(None, 8),
        pickle.NEWFALSE: lambda m: m.push(False, 8),
        pickle.NEWTRUE: lambda m: m.push(True, 8),
        pickle.BININT: lambda m: m.push(m.unpack('<i')),
        pickle.BININT1: lambda m: m.push(m.unpack('B'), 8),
        pickle.BININT2: lambda m: m.push(m.unpack('<H')),
        pickle.BINFLOAT: lambda m: m.push(m.unpack('>d')),
        pickle.BINUNICODE: _Machine.binunicode,
        pickle.LONG1: _Machine.long1,
        pickle.BINGET: lambda m: m.get('B'),
        pickle.LONG_BINGET: lambda m: m.get('<I'),
        pickle.BINPUT: lambda m: m.put('B'),
        pickle.LONG_BINPUT: lambda m: m.put('<I'),
    }.items()
}
