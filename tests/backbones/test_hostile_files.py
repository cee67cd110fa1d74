"""Nothing that a hostile file holds is run; it costs little memory and is refused in one line."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from backbones.checkpoints import CheckpointError, read_checkpoint
from tests.backbones import hostile, hostile_objects, pickled

SMALL = 32 << 20  # bytes that any file may take
LARGE = 64 << 20


def read_all(
    root: Path, folder: Path, reader: str = 'read_checkpoint', canary: Path | None = None
) -> list[dict]:
    """Read a folder's files in another process, watched; return what happened, by file."""
    result = folder / reader / 'result.json'
    result.parent.mkdir()
    # By its path: another package may be called tests.
    command = [sys.executable, str(root / 'tests/backbones/watched.py')]
    command += [str(folder), str(canary or folder / 'canary'), str(result), reader]
    done = subprocess.run(
        command,
        cwd=root,
        env=os.environ | {'PYTHONPATH': str(root), 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert result.exists(), done.stderr[-2000:]
    return json.loads(result.read_text())


def check(rows: list[dict]) -> None:
    """Assert that each file was refused, and nothing else."""
    for row in rows:
        assert row['kind'] == 'CheckpointError', row
        assert not row['canary'], row
        assert row['events'] == [], row
        assert row['memory'] <= max(2 * row['size'], SMALL), row
        assert row['seconds'] < 30, row
        message = row['error']
        assert message.isprintable(), row
        assert len(message) < 700, row
        assert row['file'] in message, row
        assert 'was not loaded: ' in message, row
        assert any(f'; {remedy} ' in message for remedy in ('copy', 'get', 'if', 'save')), row


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """A few of all kinds, every acting function, and large files."""
    folder = tmp_path_factory.mktemp('hostile')
    hostile.make(folder, 60, seed=0)
    for i, function in enumerate(hostile_objects.ACTING):
        body = pickled.wrap(hostile_objects.acting(function, folder / 'canary'), 'meta')
        pack = pickled.legacy if i % 2 else pickled.zipped
        (folder / f'act {function}.pth').write_bytes(pack(body))
    weights = pickled.value({'weight': 1})
    stored = pickled.storage(count=LARGE)  # four times what is there
    for name, data in {
        'storage.pth': pickled.zipped(pickled.tensor((LARGE,), stored=stored), b'\0' * LARGE),
        'pickle.pth': pickled.zipped(b'(' + b'}' * LARGE + b't'),
        'old.pth': pickled.legacy(b'(' + weights * (LARGE // len(weights)) + b't'),
        'header.safetensors': LARGE.to_bytes(8, 'little') + b'[],' * (LARGE // 3) + b'[]',
    }.items():
        (folder / f'large {name}').write_bytes(data)
    return folder


def test_hostile_files_are_refused_and_nothing_happens(root, folder):
    rows = read_all(root, folder)
    assert len(rows) == 60 + len(hostile_objects.ACTING) + 4
    check(rows)
    large = [row for row in rows if row['file'].startswith('large ')]
    assert len(large) == 4
    assert all(row['memory'] < 2 * LARGE for row in large)


def test_the_watch_sees_what_the_files_do_when_they_are_run(root, folder, tmp_path):
    for path in folder.glob('act *'):
        (tmp_path / path.name).symlink_to(path)
    rows = read_all(root, tmp_path, 'torch.load', folder / 'canary')
    assert len(rows) == len(hostile_objects.ACTING)
    for row in rows:
        assert row['canary'], row
        assert row['events'], row


def test_the_same_files_without_harm_are_read(tmp_path):
    made = pickled.tensor()
    old_made = pickled.tensor(stored=pickled.storage(old=True))
    old = pickled.legacy(old_made, ['0'], (4).to_bytes(8, 'little') + b'\0' * 16)
    log = pickled.buffer(
        max_length=pickled.value(5), _log_history=pickled.array(), _count_history=pickled.array()
    )
    files = {
        'zip': pickled.zipped(pickled.wrap(made, 'run_state')),
        'old': old,
        'array': pickled.zipped(pickled.array((2, 1), data=b'\0' * 16)),
        'log': pickled.zipped(pickled.wrap(log, 'message_hub')),
        'counter': pickled.zipped(pickled.call('collections.Counter', pickled.value({3: 1}))),
        'data': pickled.zipped(pickled.value({'a': (1, 'b', [2.5, None, True, 1 << 70])})),
    }
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        assert read_checkpoint(path) is not None
    assert torch.equal(read_checkpoint(tmp_path / 'old'), torch.zeros(4))


@pytest.mark.parametrize('old', [False, True])
def test_whatever_bytes_change_the_file_is_read_or_refused(tmp_path, old):
    rng = random.Random(old)
    path = tmp_path / 'checkpoint.pth'
    torch.save(hostile.checkpoint(), path, _use_new_zipfile_serialization=not old)
    good = path.read_bytes()
    messages = []
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.choice([1, 1, 4])):
            data[rng.randrange(1000)] = rng.choice([0, 1, 0x80, 0xFF, rng.randrange(256)])
        path.write_bytes(data)
        try:
            read_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
    assert all(message.isprintable() for message in messages)
    assert 100 < len(messages) < 400
