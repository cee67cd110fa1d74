"""A disk that is full fails a save, not the run."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from backbones.checkpoints import seal_holds
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(
    steps=30,
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0, max_keep_ckpts=1),
)  # fmt: skip
SIZE = 1 << 20


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    place = tmp_path / 'disk'
    place.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', f'size={SIZE}', 'tmpfs', str(place)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError as error:
        pytest.skip(f'there is no mount: {error}')
    if done.returncode:
        pytest.skip(f'can not mount a tmpfs here: {done.stderr.strip()}')
    yield place
    subprocess.run(['umount', str(place)], check=True)


class _Ballast(tiny.Hook):
    """Fills the disk before one epoch, and frees it before another."""

    def __init__(self, disk: Path, full: int, free: int) -> None:
        self.path, self.full, self.free = disk / 'ballast', full, free
        self.seen: list[tuple[int, list[str]]] = []

    def before_train_epoch(self, runner) -> None:
        folder = Path(runner.work_dir)
        names = sorted(p.name for p in folder.iterdir() if 'epoch' in p.name or p.name[0] == '.')
        pointer = folder / 'last_checkpoint'
        self.seen.append((names, pointer.read_text() if pointer.exists() else ''))
        if runner.epoch == self.free:
            self.path.unlink()
        if runner.epoch != self.full:
            return
        with self.path.open('wb', buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(4096)):
                pass


def test_a_full_disk(small_disk, runs, tally):
    full_disk(small_disk, runs, tally)


def full_disk(disk: Path, runs: Path, tally) -> None:
    def train(folder: Path, ballast: bool) -> tuple[dict[str, str], list]:
        cfg = tiny.tiny_config(folder, **OPTIONS)
        cfg.default_hooks.logger.type = 'SteadyLoggerHook'
        runner = tiny.build_runner(cfg)
        hook = _Ballast(disk, 1, 3)
        if ballast:
            runner.register_hook(hook)
        runner.train()
        return tiny.digest(runner), hook.seen

    whole, _ = tiny.fork(runs / 'a', train, runs / 'whole', False).result()
    folder = disk / 'run'
    result, seen = tiny.fork(runs / 'b', train, folder, True).result()
    first = (['epoch_1.pth'], str(folder / 'epoch_1.pth'))
    assert seen == [([], ''), first, first, first, (['epoch_4.pth'], str(folder / 'epoch_4.pth'))]
    assert seal_holds(folder / 'epoch_5.pth') is True
    assert sorted(p.name for p in folder.glob('*.pth')) == ['epoch_5.pth']
    assert not list(folder.glob('.*'))
    assert result == whole
    tally('tmpfs of 1 MiB full at 2 saves: the run went on, the next save succeeded, bit-equal')


def test_a_limit_on_the_size_of_files(runs, tally):
    """The stand-in for a quota, for which no rights are needed: also in the midst of a write."""

    def train() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        runner = tiny.tiny_runner(runs / 'run', **OPTIONS)

        class Raise(tiny.Hook):
            def before_train_epoch(self, runner) -> None:
                if runner.epoch == 3:
                    assert not list((runs / 'run').glob('*epoch*'))
                    limit = resource.RLIM_INFINITY
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        runner.register_hook(Raise())
        runner.train()

    tiny.fork(runs / 'result', train).result()
    assert sorted(p.name for p in (runs / 'run').glob('*.pth')) == ['epoch_5.pth']
    tally('file size limit at 3 saves: the run went on, the next save succeeded')
