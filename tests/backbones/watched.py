"""Read files as checkpoints in this process and write down all that it does meanwhile.

    python -m tests.backbones.watched FOLDER CANARY RESULT READER

READER is `read_checkpoint`, the project's, or `torch.load`, which runs what a file holds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from backbones.checkpoints import CheckpointError, read_checkpoint
from poolformer_dense.files import write_checkpoint

# What reading a file may do: open files to read them.
_HARMLESS = {'open', 'os.listdir', 'os.scandir'}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Watch:
    """Everything that Python reports to an audit hook while it is on."""

    def __init__(self) -> None:
        self.events: list[str] | None = None
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if self.events is None:
            return
        if event == 'open':
            _, mode, flags = arguments
            if not (flags or 0) & _WRITING and not set(mode or '') & set('wax+'):
                return
        elif event in _HARMLESS:
            return
        self.events.append(f'{event} {arguments!r}'[:200])


def unsafely(path: Path) -> Any:
    return torch.load(path, map_location='cpu', weights_only=False)


def _peak(reset: bool = False) -> int:
    """Most memory that this process had since the last reset, in bytes."""
    if reset:
        Path('/proc/self/clear_refs').write_text('5')
    status = Path('/proc/self/status').read_text()
    field = 'VmRSS:' if reset else 'VmHWM:'
    return int(status.split(field)[1].split()[0]) << 10


def _warm_up(folder: Path) -> None:
    """Import what reading imports when it is first needed, also to say what is wrong."""
    for name in ('good.pth', 'good.safetensors'):
        path = folder / name
        write_checkpoint({'a': torch.ones(2)}, path)
        read_checkpoint(path)
        path.write_bytes(path.read_bytes()[:-1])
        try:
            read_checkpoint(path)
        except CheckpointError:
            path.unlink()
    b'a'.decode('cp437')  # as zipfile does with names
    path = folder / 'old.pth'
    torch.save({'a': torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    read_checkpoint(path)
    path.unlink()


def main(folder: Path, canary: Path, result: Path, reader: str) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    scratch = result.parent / 'scratch'
    scratch.mkdir()
    _warm_up(scratch)
    watch = Watch()
    rows = []
    for path in files:
        before = _peak(reset=True)
        start = time.monotonic()
        error = kind = None
        watch.events = []
        try:
            {'read_checkpoint': read_checkpoint, 'torch.load': unsafely}[reader](path)
        except BaseException as raised:
            error, kind = str(raised), type(raised).__name__
        events, watch.events = watch.events, None
        rows.append(
            dict(
                file=path.name,
                size=path.stat().st_size,
                kind=kind,
                error=error,
                events=events,
                canary=canary.exists(),
                memory=_peak() - before,
                seconds=time.monotonic() - start,
            )
        )
        if canary.exists():
            canary.rmdir() if canary.is_dir() else canary.unlink()
    result.write_text(json.dumps(rows))


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:4]), sys.argv[4])
