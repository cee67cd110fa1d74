"""Pickles and checkpoints by hand, piece by piece."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping


def text(value: str) -> bytes:
    data = value.encode('utf-8', 'surrogatepass')
    return pickle.BINUNICODE + struct.pack('<I', len(data)) + data


def value(item: object) -> bytes:
    """The instructions for plain data."""
    if isinstance(item, tuple):
        return group(*map(value, item))
    if isinstance(item, list):
        return b'](' + b''.join(map(value, item)) + b'e'
    if isinstance(item, dict):
        return b'}(' + b''.join(value(k) + value(v) for k, v in item.items()) + b'u'
    if isinstance(item, bytes):
        return call('_codecs.encode', text(item.decode('latin1')), text('latin1'))
    if isinstance(item, str):
        return text(item)
    return pickle.dumps(item, protocol=2)[2:-1]


def group(*parts: bytes) -> bytes:
    return b'(' + b''.join(parts) + b't'


def name(path: str) -> bytes:
    module, _, attribute = path.rpartition('.')
    return b'c' + f'{module}\n{attribute}\n'.encode()


def call(function: str, *parts: bytes) -> bytes:
    return name(function) + group(*parts) + b'R'


def storage(
    key: str = '0',
    count: int = 4,
    kind: str = 'torch.FloatStorage',
    location: str = 'cpu',
    old: bool = False,
) -> bytes:
    parts = [text('storage'), name(kind), text(key), text(location), value(count)]
    parts += [b'N'] if old else []
    return group(*parts) + b'Q'


HOOKS = call('collections.OrderedDict')


def tensor(size=(4,), stride=(1,), offset=0, stored=None, hooks=HOOKS, grad=False) -> bytes:
    parts = [stored or storage(), value(offset), value(size), value(stride), value(grad), hooks]
    return call('torch._utils._rebuild_tensor_v2', *parts)


def buffer(**state: bytes) -> bytes:
    """A log buffer with this state."""
    items = b''.join(text(key) + item for key, item in state.items())
    return name(HISTORY) + b')\x81}(' + items + b'ub'


HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'


def attribute(path: str, of: bytes | None = None) -> bytes:
    """The attribute that the last part of a path names, of the rest of it or of another object."""
    owner, _, last = path.rpartition('.')
    return call('builtins.getattr', name(owner) if of is None else of, text(last))


def array(shape=(1,), dtype='f8', data=b'\0' * 8, copy=True, code='|') -> bytes:
    state = value((3, code, None, None, None, -1, -1, 0))
    kind = call('numpy.dtype', text(dtype), value(False), value(copy)) + state + b'b'
    empty = call(
        'numpy.core.multiarray._reconstruct', name('numpy.ndarray'), value((0,)), value(b'b')
    )
    return empty + group(value(1), value(shape), kind, value(False), value(data)) + b'b'


# Containers.


def zipped(body: bytes, data: bytes = b'\0' * 16, **others: bytes) -> bytes:
    """A file as torch.save writes it, with this pickle."""
    entries = {'data.pkl': b'\x80\x02' + body + b'.', 'data/0': data, 'version': b'3\n', **others}
    return zip_of({f'archive/{key}': content for key, content in entries.items()})


def zip_of(
    entries: Mapping[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    return file.getvalue()


def legacy(body: bytes, keys=(), tail: bytes = b'') -> bytes:
    """A file as torch before 1.6 wrote it."""
    head = [0x1950A86A20F9469CFC6C, 1001, {'little_endian': True}]
    pickles = [pickle.dumps(item, protocol=2) for item in head]
    pickles += [b'\x80\x02' + body + b'.', pickle.dumps(list(keys), protocol=2)]
    return b''.join(pickles) + tail


def bare(body: bytes) -> bytes:
    return b'\x80\x02' + body + b'.'


def wrap(body: bytes, place: str) -> bytes:
    """Put an object into a checkpoint."""
    if place == 'top':
        return body
    if place == 'twice':
        return body + b'q\x07\x85h\x07\x86'
    weights = value({'weight': 1})
    return b'}(' + text('state_dict') + weights + text(place) + body + b'u'
