"""Files made to do harm when they are read as a checkpoint; the same ones for the same seed."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

from poolformer_dense.files import save_sealed
from tests.backbones.hostile_objects import ACTING, LEADING, acting, objects
from tests.backbones.pickled import (
    bare,
    legacy,
    storage,
    tensor,
    value,
    wrap,
    zip_of,
    zipped,
)


def zips(canary: Path) -> dict[str, bytes]:
    """Containers that are not what they seem, by what is wrong."""
    good = zipped(value({'state_dict': {'weight': 1}}))
    end = len(good) - 22
    count, length, start = struct.unpack_from('<HLL', good, end + 10)

    def entry(new: bytes, at: int, index: int = 0) -> bytes:
        """Change bytes of an entry in the list."""
        place = [m.start() for m in re.finditer(b'PK\x01\x02', good)][index] + at
        return good[:place] + new + good[place + len(new) :]

    def ended(*fields: int) -> bytes:
        return good[:end] + b'PK\x05\x06' + struct.pack('<4H2LH', *fields)

    def renamed(old: str, new: str) -> bytes:
        assert len(old) == len(new)
        return good.replace(old.encode(), new.encode())

    wide = struct.pack('<4sQ2H2L4Q', b'PK\x06\x06', 44, 45, 45, 0, 0, 1, 1, 46, 0)
    locator = struct.pack('<4sLQL', b'PK\x06\x07', 0, end, 1)
    body, data = b'\x80\x02N.', {'archive/version': b'3\n'}
    bomb = {'archive/data.pkl': body, 'archive/data/0': b'\0' * (64 << 20), **data}
    many = {f'archive/data/{i}': b'' for i in range(70000)}
    link = zipfile.ZipInfo('archive/data/0')
    link.external_attr = 0o120777 << 16
    twice = zip_of({'archive/data.pkl': body, 'archive/data.pkX': b'\x80\x02K\1.'})
    return {
        'a compressed storage': zip_of(bomb, zipfile.ZIP_DEFLATED),
        'a compressed pickle': zip_of(
            {'archive/data.pkl': b'\x80\x02X' + struct.pack('<I', 1 << 25) + b'a' * (1 << 25)},
            zipfile.ZIP_DEFLATED,
        ),
        'compressed with lzma': zip_of(bomb, zipfile.ZIP_LZMA),
        'a method of its own': entry(b'\x63\0', 10),
        'sizes that differ': entry(struct.pack('<L', 1), 20),
        'a size larger than the file': entry(struct.pack('<2L', 1 << 30, 1 << 30), 20, 1),
        'a size that overlaps': entry(struct.pack('<2L', 90, 90), 20, 1),
        'a size without 64 bits': entry(struct.pack('<2L', 0xFFFFFFFF, 0xFFFFFFFF), 20, 1),
        'two entries at one place': entry(struct.pack('<L', 0), 42, 1),
        'an entry behind the end': entry(struct.pack('<L', 1 << 30), 42, 1),
        'encrypted': entry(b'\x01\0', 8),
        'encrypted header': entry(b'\0\x20', 8),
        'of another volume': entry(b'\1\0', 34),
        'a link': zip_of({'archive/data.pkl': body, link: b'/etc/passwd'}),
        'out of the folder': zip_of({'archive/data.pkl': body, f'archive/../..{canary}': b'x'}),
        'an absolute name': zip_of({'archive/data.pkl': body, str(canary): b'x'}),
        'dots as the folder': zip_of({'../data.pkl': body, '../version': b'3'}),
        'a backslash': zip_of({'archive/data.pkl': body, 'archive\\..\\x': b'x'}),
        'no folder': zip_of({'data.pkl': body, 'version': b'3'}),
        'two folders': zip_of({'archive/data.pkl': body, 'b/data.pkl': body}),
        'a name with a zero': renamed('archive/version', 'archive/vers\0on'),
        'names that differ': good.replace(b'archive/version', b'archive/byteord', 1),
        'a name twice': renamed('archive/version', 'archive/data/00').replace(
            b'archive/data/00', b'archive/version', 1
        ),
        'a name twice, entries': twice.replace(b'data.pkX', b'data.pkl'),
        'a name in capitals': zip_of({'archive/data.pkl': body, 'archive/DATA.PKL': body}),
        'a program': zip_of({'archive/data.pkl': body, 'archive/constants.pkl': body}),
        'code': zip_of({'archive/data.pkl': body, 'archive/code/x.py': b'import os'}),
        'another record': zip_of({'archive/data.pkl': body, 'archive/evil.so': b'x'}),
        'no pickle': zip_of({'archive/version': b'3'}),
        'a large version': zipped(b'N', version=b'3' * 100000),
        'entries without end': zip_of({'archive/data.pkl': body, **many}),
        'more entries than there are': ended(0, 0, 60000, 60000, length, start, 0),
        'fewer entries than there are': ended(0, 0, 1, 1, length, start, 0),
        'counts that differ': ended(0, 0, count, 1, length, start, 0),
        'several volumes': ended(1, 1, count, count, length, start, 0),
        'a list before its place': ended(0, 0, count, count, length, start - 4, 0),
        'a list without end': ended(0, 0, count, count, 0x7FFFFFFF, start, 0),
        'a comment that is not there': ended(0, 0, count, count, length, start, 900),
        'another comment': good[:-2] + b'\x05\0hello',
        'a seal of another file': good[:-2] + b'\x47\0sha256:' + b'0' * 64,
        'a tail': good + b'tail' * 10,
        'a head': b'PK\x03\x04' + good,
        'two ends': good + good[end:],
        'two zips': good + zipped(b'N'),
        'an end of 64 bits that differs': good[:end] + wide + locator + good[end:],
        'a place of the 64 bit end that differs': good[:end] + locator + good[end:],
        'only the start': b'PK\x03\x04' + b'\0' * 300,
        'only an end': b'PK\x05\x06' + b'\0' * 18,
        'only an end, behind the start of a file': b'PK\x03\x04' + good[end:],
        'a text before the zip': b'#!/bin/sh\n' + good,
    }


def others(canary: Path) -> dict[str, bytes]:
    """Files of other kinds; the end of a name gives theirs."""
    header: Callable[[object], bytes] = lambda item: _headed(json.dumps(item).encode())  # noqa: E731
    one = {'dtype': 'F32', 'shape': [1], 'data_offsets': [0, 4]}
    act = acting('os.system', canary)
    empty, tail = b'}', struct.pack('<q', 4) + b'\0' * 16
    made = tensor(stored=storage(old=True))
    return {
        'empty': b'',
        'one byte': b'\x80',
        'text': b'hello world\n' * 50,
        'html': b'<!DOCTYPE html><html><body>404</body></html>',
        'git lfs': b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64,
        'png': b'\x89PNG\r\n\x1a\n' + b'\0' * 200,
        'zeros': b'\0' * 5000,
        'gzip': gzip.compress(bare(act)),
        'gzip of much': gzip.compress(b'\0' * (32 << 20)),
        'elf': b'\x7fELF' + b'\0' * 100,
        'npy of objects': _npy(),
        'tar': _tar({'storages': bare(act), 'tensors': bare(act), 'pickle': bare(act)}),
        'tar out of its folder': _tar({f'../../..{canary}': b'x', 'pickle': bare(act)}),
        'tar of links': _tar({'storages': None, 'tensors': None, 'pickle': bare(act)}),
        'tar that starts as a pickle': _tar({'pickle': bare(act)}, legacy(b'N')[:90]),
        'tar.gz': gzip.compress(_tar({'pickle': bare(act)})),
        'old without its storages': legacy(made, ['0']),
        'old with too few bytes': legacy(made, ['0'], tail[:-1]),
        'old with too many bytes': legacy(made, ['0'], tail + b'x'),
        'old with another length': legacy(made, ['0'], struct.pack('<q', 1 << 40) + b'\0' * 16),
        'old with another key': legacy(made, ['1'], tail),
        'old with a key twice': legacy(made, ['0', '0'], tail * 2),
        'old with keys that act': legacy(made, ['0'], tail).replace(
            pickle.dumps(['0'], protocol=2), bare(act)
        ),
        'old with an acting magic number': bare(act) + legacy(empty),
        'old with an acting version': legacy(empty)[:16] + bare(act) + legacy(empty)[16:],
        'old with another machine': pickle.dumps(0x1950A86A20F9469CFC6C, 2) + bare(act) * 4,
        'no length.safetensors': b'\0\0\0',
        'empty.safetensors': b'',
        'length beyond the file.safetensors': struct.pack('<Q', 1 << 20) + b'{}',
        'length of 2^63.safetensors': struct.pack('<Q', 1 << 63) + b'{}',
        'length of all.safetensors': b'\xff' * 8 + b'{}',
        'a header of 4 MB.safetensors': _headed(b'{' + b' ' * (4 << 20) + b'}'),
        'lists in lists.safetensors': _headed(b'[' * 900000),
        'not json.safetensors': _headed(b'\x80\x02N.'),
        'not utf-8.safetensors': _headed(b'{"\xff\xfe": 1}'),
        'a list.safetensors': header([1, 2]),
        'overlapping.safetensors': header({'a': one, 'b': one}) + b'\0' * 4,
        'out of the file.safetensors': header({'a': one | {'data_offsets': [0, 400]}}) + b'\0' * 4,
        'offsets the wrong way.safetensors': header({'a': one | {'data_offsets': [4, 0]}}),
        'offsets below zero.safetensors': header({'a': one | {'data_offsets': [-4, 0]}}),
        'a gap.safetensors': header({'a': one | {'data_offsets': [4, 8]}}) + b'\0' * 8,
        'a tail.safetensors': header({'a': one}) + b'\0' * 400,
        'a shape too large.safetensors': header({'a': one | {'shape': [1 << 40]}}) + b'\0' * 4,
        'a shape that overflows.safetensors': header(
            {'a': one | {'shape': [1 << 62, 1 << 62]}}) + b'\0' * 4,
        'another type.safetensors': header({'a': one | {'dtype': 'OBJECT'}}) + b'\0' * 4,
        'an old pickle.safetensors': legacy(act),
        'a zip.safetensors': zipped(act),
    }  # fmt: skip


def _headed(data: bytes) -> bytes:
    return struct.pack('<Q', len(data)) + data


def _npy() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def _tar(members: dict[str, bytes | None], first: bytes | None = None) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode='w') as archive:
        if first is not None:
            info = tarfile.TarInfo(first.decode('utf-8', 'surrogateescape'))
            archive.addfile(info)
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            if content is None:
                info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content or b''))
    return file.getvalue()


def checkpoint() -> dict[str, object]:
    """What mmengine would save, small."""
    log = HistoryBuffer()
    log.update(1.5)
    return {
        'state_dict': {'weight': torch.arange(64.0), 'bias': torch.ones(3)},
        'message_hub': {'log_scalars': {'loss': log}},
    }


def damaged(folder: Path, rng: random.Random) -> tuple[str, bytes]:
    """A good file of some kind, cut off somewhere, or sealed and changed."""
    path = folder / 'good'
    kind = rng.choice(['zip', 'old', 'sealed', 'sealed and changed'])
    if kind.startswith('sealed'):
        save_sealed(checkpoint(), path)
    else:
        torch.save(checkpoint(), path, _use_new_zipfile_serialization=kind == 'zip')
    data = bytearray(path.read_bytes())
    path.unlink()
    at = rng.randrange(len(data))
    if kind != 'sealed and changed':
        return f'{kind} cut off at {at}', bytes(data[:at])
    data[at] ^= 1 << rng.randrange(8)
    return f'{kind} at {at}', bytes(data)


def make(folder: Path, count: int, seed: int) -> list[Path]:
    """Write hostile files to a folder and return them.

    Args:
        folder: An empty folder; the canary would be ``canary`` in it.
        count: How many: first one of each single kind in random order, then calls of acting
            functions in random containers and places, and damaged files.
        seed: Of the choice.
    """
    rng = random.Random(seed)
    canary = folder / 'canary'
    single = {f'object {k}': zipped(v) for k, v in objects(canary).items()}
    single |= {f'zip {k}': v for k, v in zips(canary).items()} | others(canary)
    files = list(single.items())
    rng.shuffle(files)
    files = files[: count * 2 // 3]
    functions = [*ACTING, *LEADING]
    rng.shuffle(functions)
    containers = {'zip': zipped, 'old': legacy, 'bare': bare}
    places = ['top', 'twice', 'message_hub', 'optimizer', 'meta', 'run_state']
    while len(files) < count:
        if len(files) % 8 == 7:
            files.append(damaged(folder, rng))
            continue
        function = functions[len(files) % len(functions)]
        container, place = rng.choice(list(containers)), rng.choice(places)
        body = acting(function, canary)
        label = f'{function} in {container} at {place}'
        files.append((label, containers[container](wrap(body, place))))
    return [_write(folder, i, label, data) for i, (label, data) in enumerate(files)]


def _write(folder: Path, index: int, label: str, data: bytes) -> Path:
    stem, dot, suffix = label.partition('.safetensors')
    plain = re.sub(r'[^\w.-]+', '_', stem)
    path = folder / f'{index:03} {plain}{dot + suffix if dot else ".pth"}'.replace(' ', '-')
    path.write_bytes(data)
    return path
