"""The tiny run under tools/launch.sh, and waiting for processes without sleeping blindly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.poolformer_dense.runner import tiny

ROOT = Path(__file__).resolve().parents[3]
DEADLINE = 120.0  # seconds
TRAINING = f"""
import json, os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
sys.path.insert(0, {str(ROOT)!r})
from tests.poolformer_dense.runner.launching import train_as_rank
train_as_rank(json.loads(os.environ['TINY_OPTIONS']))
"""


class Progress(tiny.Hook):
    """Says in a file of each rank which iteration is done."""

    priority = 'VERY_LOW'

    def __init__(self, folder: Path) -> None:
        self.file = open(folder / f'progress{os.environ.get("RANK", "0")}', 'a')  # noqa: SIM115

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        print(runner.iter + 1, file=self.file, flush=True)


def train_as_rank(options: dict[str, Any]) -> None:
    """What the script does: train, and write each rank's digest."""
    folder = Path(options.pop('folder'))
    cfg = tiny.tiny_config(folder / 'run', launcher='pytorch', **options)
    runner = tiny.build_runner(cfg)
    runner.register_hook(Progress(folder))
    runner.train()
    Path(folder, f'digest{runner.rank}').write_text(json.dumps(tiny.digest(runner)))


@contextmanager
def launched(
    folder: Path, processes: int, port: int, options: dict[str, Any], **variables: str
) -> Iterator[subprocess.Popen]:
    """Start the tiny run by tools/launch.sh; its own session ends with the block."""
    folder.mkdir(exist_ok=True)
    script = folder / 'training.py'
    script.write_text(TRAINING)
    environment = os.environ | {
        'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'VIRTUAL_ENV': sys.prefix, 'TMPDIR': str(folder), 'PORT': str(port),
        'TINY_OPTIONS': json.dumps(options | dict(folder=str(folder))), 'OMP_NUM_THREADS': '1',
    } | variables  # fmt: skip
    tool = os.path.relpath(script, ROOT / 'tools')
    with open(folder / 'output', 'a') as output:
        process = subprocess.Popen(
            [str(ROOT / 'tools/launch.sh'), str(processes), tool],
            cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True,
            # Shells have it ignored in what they start in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            for pid in [*descendants(process.pid), process.pid]:
                os.kill(pid, signal.SIGKILL)
            process.wait()


def children(pid: int) -> list[int]:
    """The processes that a process has started and that live."""
    try:
        return [int(p) for p in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def descendants(pid: int) -> list[int]:
    """The children of a process, and theirs."""
    return [d for child in children(pid) for d in (*descendants(child), child)]


def ranks(process: subprocess.Popen) -> list[int]:
    """The processes of the training, by rank, when launch.sh and torchrun have started them."""
    found = {}
    for agent in children(process.pid):
        for pid in children(agent):
            try:
                variables = Path(f'/proc/{pid}/environ').read_bytes().split(b'\0')
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            found |= {int(v[5:]): pid for v in variables if v.startswith(b'RANK=')}
    return [found[rank] for rank in sorted(found)]


def progress(folder: Path, rank: int = 0) -> list[int]:
    """The iterations that a rank has done so far, in their order."""
    path = folder / f'progress{rank}'
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def wait_for(
    condition: Callable[[], bool],
    process: subprocess.Popen | None = None,
    log: Path | None = None,
    seconds: float = DEADLINE,
) -> None:
    """Wait until something is so, for so many seconds at most and while a process lives."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process is not None and process.poll() is not None:
            said = log.read_text()[-3000:] if log else ''
            raise AssertionError(f'it ended with {process.returncode}: {said}')
        assert time.monotonic() < deadline, 'waited in vain'
        time.sleep(0.001)
