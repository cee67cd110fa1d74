"""A dead or stuck worker ends the training at once, in one line, on every rank."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import DATASETS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import DataLoader, default_collate

from poolformer_dense.cli import run_tool
from poolformer_dense.errors import RankError, UserError
from poolformer_dense.runner.runner import DenseRunner, build_runner
from poolformer_dense.runner.workers import (
    TIMEOUT,
    CollateWithRoom,
    WatchedLoader,
    _shared_bytes,
    clear_errors,
    fit_workers,
    with_room,
)
from poolformer_dense.shared_memory import Room
from tests.poolformer_dense.runner import tiny


@DATASETS.register_module()
class FatalDataset(tiny.TinyDataset):
    """The tiny data, of which one image sends its worker a signal or raises a UserError.

    Args:
        at: The index of that image.
        signal: The signal's name, or None for the error.
        count: A file that is made the first time; the second time it happens, and never again.
        options: See `TinyDataset`.
    """

    def __init__(
        self, at: int, signal: str | None, count: str | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self.at, self.signal, self.count = at, signal, count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == self.at and self._due():
            if self.signal is None:
                raise UserError('the moon is in the wrong quarter')
            os.kill(os.getpid(), getattr(signal, self.signal))
        return super().__getitem__(index)

    def _due(self) -> bool:
        if self.count is None:
            return True
        times = len(Path(self.count).read_text()) if Path(self.count).exists() else 0
        Path(self.count).write_text('x' * (times + 1))
        return times == 1


def _consume(timeout: float, deaf: bool = False, **options: Any) -> tuple[str, str, int]:
    """Load until it fails; return the error's type and text, and how many workers are left.

    Args:
        timeout: The loader's.
        deaf: Whether torch is not told of a child's end.
        options: See `FatalDataset`.
    """
    loader = WatchedLoader(
        FatalDataset(at=7, length=24, **options),
        batch_size=2,
        num_workers=2,
        timeout=timeout,
        collate_fn=CollateWithRoom(default_collate),
    )
    try:
        with clear_errors():
            for _ in loader:
                if deaf:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    except Exception as error:
        for process in multiprocessing.active_children():
            process.join(10)
        return type(error).__name__, str(error), len(multiprocessing.active_children())
    raise AssertionError('nothing happened')


@pytest.fixture
def failure(warmed: None, tmp_path: Path) -> Callable[..., tuple[str, str, int]]:
    """Runs `_consume` in a child, for torch's handler of signals outlives a failure."""

    def run(timeout: float = 0, **options: Any) -> tuple[str, str, int]:
        return tiny.fork(tmp_path / 'failure', _consume, timeout, **options).result()

    return run


@pytest.mark.parametrize(
    ('config', 'expected'),
    [
        (dict(num_workers=2), TIMEOUT),
        (dict(num_workers=2, timeout=300), 300),
        (dict(num_workers=2, timeout=0), 0),
        (dict(num_workers=0), None),
        (dict(), None),
    ],
)
def test_timeout_is_set_where_there_are_workers(config: dict, expected: float | None) -> None:
    assert fit_workers(config) == config | ({} if expected is None else dict(timeout=expected))
    assert 0 < TIMEOUT < 60


def test_settings_of_workers_are_dropped_with_the_workers() -> None:
    config = dict(persistent_workers=True, prefetch_factor=4, multiprocessing_context='fork')
    assert fit_workers(dict(num_workers=0, batch_size=2, **config)) == dict(
        num_workers=0, batch_size=2
    )
    assert fit_workers(config) == {}
    DataLoader([1, 2], **fit_workers(dict(num_workers=0, **config)))
    assert config.items() <= fit_workers(dict(num_workers=2, **config)).items()


@pytest.mark.parametrize('name', ['SIGKILL', 'SIGSEGV', 'SIGBUS'])
def test_dead_worker_is_one_line(failure: Callable[..., Any], name: str) -> None:
    kind, message, left = failure(signal=name)
    assert kind == 'RankError'
    assert left == 0
    assert '\n' not in message
    assert message.startswith('data loading worker ')
    assert 'is killed by signal' in message
    assert ('/dev/shm' if name == 'SIGBUS' else 'train_dataloader.num_workers') in message
    assert '--resume' in message


def test_the_signal_is_told_although_torch_did_not_see_it(failure: Callable[..., Any]) -> None:
    kind, message, left = failure(signal='SIGBUS', timeout=1, deaf=True)
    assert (kind, left) == ('RankError', 0)
    assert 'is killed by signal: ' in message
    assert '/dev/shm' in message


def test_stuck_worker_is_one_line_and_is_ended(failure: Callable[..., Any]) -> None:
    kind, message, left = failure(signal='SIGSTOP', timeout=1)
    assert kind == 'RankError'
    assert left == 0
    assert 'one is stuck' in message
    assert 'train_dataloader.timeout=300' in message


def test_full_shared_memory_is_one_line_at_once(
    failure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(free=1000, total=300 << 10)
    monkeypatch.setattr('poolformer_dense.runner.workers.room_for_batches', lambda: room)
    # No image ends its worker, and the child would be killed before this timeout.
    kind, message, left = failure(signal='SIGCONT', timeout=3600)
    assert (kind, left) == ('RankError', 0)
    assert message.startswith('shared memory is full: a batch takes 0.0 MB, and /dev/shm has 0.0 ')
    assert 'MB of 0.3 MB free; enlarge it (docker run --shm-size=16g, or --ipc=host' in message
    assert 'num_workers=0 does without it; then resume with --resume' in message


def test_a_batch_that_does_not_come_may_have_found_no_room(
    failure: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    room = Room(free=100_000, total=300 << 10)
    monkeypatch.setattr('poolformer_dense.runner.workers.room_for_batches', lambda: room)
    kind, message, _ = failure(signal='SIGSTOP', timeout=1)
    assert kind == 'RankError'
    assert 'shared memory seems to be too small: /dev/shm has 0.1 MB of 0.3 MB free' in message


@pytest.mark.parametrize(
    'given', [{}, dict(collate_fn=dict(type='default_collate')), dict(collate_fn=default_collate)]
)
def test_the_runners_loaders_see_to_their_room(given: dict) -> None:
    options = dict(dataset=[1, 2], sampler=dict(type='DefaultSampler', shuffle=False), **given)
    loader = DenseRunner.build_dataloader(dict(batch_size=2, num_workers=1, **options))
    assert isinstance(loader.collate_fn, CollateWithRoom)
    expected = default_collate([1, 2]) if given else [1, 2]
    assert list(map(int, next(iter(loader)))) == list(map(int, expected))
    loader = DenseRunner.build_dataloader(dict(batch_size=2, num_workers=0, **options))
    assert not isinstance(loader.collate_fn, CollateWithRoom)
    config = dict(num_workers=1, collate_fn='no function')
    assert with_room(config) == config


@pytest.mark.parametrize('batches', [None, dict(type='mmdet.AspectRatioBatchSampler')])
def test_the_runners_loaders_watch_and_keep_what_they_are_made_of(batches: dict | None) -> None:
    sampler = dict(type='DefaultSampler', shuffle=False)
    config = dict(dataset=[1, 2, 3], batch_size=2, num_workers=1, sampler=sampler)
    config |= dict(batch_sampler=batches) if batches else dict(drop_last=True)
    built, stock = DenseRunner.build_dataloader(config), Runner.build_dataloader(config)
    assert isinstance(built, WatchedLoader)
    for name in ('batch_size', 'drop_last', 'persistent_workers', 'prefetch_factor'):
        assert getattr(built, name) == getattr(stock, name)
    for name in ('sampler', 'batch_sampler', 'worker_init_fn'):
        assert type(getattr(built, name)) is type(getattr(stock, name))


def test_tensors_that_share_their_memory_count_once() -> None:
    whole = torch.zeros(4, 5000, dtype=torch.uint8)
    element = BaseDataElement(gt=whole[0], other=torch.zeros(1))
    batch = dict(inputs=[whole, whole[1:]], data_samples=[element], names=('a', 'b'))
    assert _shared_bytes(batch) == 20480 + 4096
    assert _shared_bytes(torch.zeros(3).share_memory_()) == 0


@pytest.mark.skipif(not Path('/dev/shm').is_dir(), reason='there is no /dev/shm')
def test_small_shared_memory_for_real(root: Path) -> None:
    """300 kB of it, in a mount namespace of its own: an error at once; small batches fit."""
    command = ['unshare', '-m', 'sh', '-c']
    mount = 'mount -t tmpfs -o size=300k tmpfs /dev/shm'
    if shutil.which('unshare') is None or subprocess.run([*command, mount]).returncode:
        pytest.skip('can not mount a tmpfs in a namespace here')
    script = f'{mount} && exec {sys.executable} -c "$0" "$@"'
    for size, expected in ((20, 'batches: 4'), (400, 'RankError: shared memory is full')):
        done = subprocess.run(
            [*command, script, SMALL, str(size)], cwd=root, capture_output=True, text=True
        )
        assert expected in done.stdout, done.stdout + done.stderr


SMALL = """
import sys
import torch
from poolformer_dense.runner.workers import CollateWithRoom, clear_errors
side = int(sys.argv[1])
samples = [torch.zeros(3, side, side, dtype=torch.uint8)] * 8
loader = torch.utils.data.DataLoader(
    samples, batch_size=2, num_workers=1, timeout=60, collate_fn=CollateWithRoom(torch.stack))
try:
    with clear_errors():
        print('batches:', len(list(loader)))
except Exception as error:
    print(f'{type(error).__name__}: {error}')
"""


def test_users_error_of_a_worker_stays_one_line(failure: Callable[..., Any]) -> None:
    assert failure(signal=None)[:2] == ('UserError', 'the moon is in the wrong quarter')


@pytest.mark.parametrize('raised', [RuntimeError('sizes differ'), ValueError('no'), UserError('x')])
def test_other_errors_are_left_alone(raised: Exception) -> None:
    with pytest.raises(type(raised)) as error, clear_errors():
        raise raised
    assert error.value is raised


@pytest.mark.parametrize(('rank', 'printed'), [('0', True), ('1', True)])
def test_process_concerned_prints_it(
    rank: str, printed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv('RANK', rank)

    def fail() -> None:
        raise RankError('worker 12 is dead')

    assert run_tool(fail) == 2
    assert ('error: worker 12 is dead' in capsys.readouterr().err) == printed


def _train(folder: Path, fatal: dict[str, Any], timeout: float, **options: Any) -> dict[str, str]:
    cfg = tiny.tiny_config(folder, workers=2, **options)
    cfg.train_dataloader.dataset |= dict(type='FatalDataset', at=7, **fatal)
    cfg.train_dataloader.timeout = timeout
    runner = build_runner(cfg)
    runner.train()
    return tiny.digest(runner)


def test_training_has_the_timeout(runs: Path) -> None:
    runner = tiny.tiny_runner(runs, workers=2)
    assert runner.build_train_loop(runner.train_loop).dataloader.timeout == TIMEOUT


@pytest.mark.parametrize('name', ['SIGKILL', 'SIGSTOP'])
def test_restart_after_a_lost_worker_ends_like_a_run_that_lost_none(runs: Path, name: str) -> None:
    def train(folder: str, fatal: str) -> tiny.Child:
        count = dict(count=str(runs / f'{folder}_count'), signal=fatal)
        resume = (runs / folder / 'last_checkpoint').exists()
        return tiny.fork(runs / 'end', _train, runs / folder, count, timeout=5, resume=resume)

    expected = train('whole', 'SIGCONT').result()
    first = train('lost', name)
    assert first.wait() == 1
    assert 'poolformer_dense.errors.RankError: ' in first.path.read_text()
    assert train('lost', name).result() == expected


def _validate(folder: Path, run: str, **fatal: Any) -> None:
    cfg = tiny.tiny_config(folder, workers=2)
    cfg.val_dataloader.dataset |= dict(type='FatalDataset', at=7, length=24, **fatal)
    cfg.val_dataloader |= dict(timeout=3, num_workers=2)
    getattr(build_runner(cfg), run)()


@pytest.mark.parametrize(
    ('run', 'end'), [('val', 'run it again'), ('train', 'resume with --resume')]
)
@pytest.mark.parametrize(
    ('name', 'expected'),
    [('SIGKILL', 'val_dataloader.num_workers'), ('SIGSTOP', 'val_dataloader.timeout=300')],
)
def test_an_evaluation_tells_of_its_lost_worker(
    runs: Path, name: str, expected: str, run: str, end: str
) -> None:
    child = tiny.fork(runs / 'end', _validate, runs / 'run', run, signal=name)
    assert child.wait() == 1
    last = child.path.read_text().splitlines()[-1]
    assert last.startswith('poolformer_dense.errors.RankError: ')
    assert expected in last
    assert last.endswith(f'then {end}')


@pytest.mark.parametrize('name', ['SIGKILL', 'SIGSTOP'])
def test_all_ranks_end(runs: Path, name: str) -> None:
    children = tiny.fork_ranks(
        2,
        runs / 'ranks',
        _train,
        runs / 'run',
        dict(signal=name),
        timeout=5,
        launcher='pytorch',
        ranks=2,
    )
    assert [child.wait() for child in children] == [1, 1]
    last = sorted(child.path.read_text().splitlines()[-1] for child in children)
    assert all(line.startswith('poolformer_dense.errors.RankError: ') for line in last)
    # Where all is slow, the other rank may wait in vain for its own workers.
    other = 'another process of this run has ended; see its message'
    assert other in last[0] or (name == 'SIGSTOP' and 'no batch came' in last[0])
    worker = 'data loading worker ' if name == 'SIGKILL' else 'no batch came from the data loading'
    assert worker in last[1]
