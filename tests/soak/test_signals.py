"""50 SIGTERMs and SIGUSR1s in every part of a training."""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest
from mmengine.hooks import Hook
from torch import Tensor

from poolformer_dense import files
from poolformer_dense.runner.preemption import EXIT_CODE
from poolformer_dense.runner.resume import newest_intact
from tests.poolformer_dense.runner import tiny

PLACES = ('loading', 'forward', 'backward', 'validation', 'saving')
STEPS = 18


def train(folder: Path, **options) -> dict[str, str]:
    settings = dict(
        ema=True, steps=STEPS, resume=True,
        checkpoint=dict(type='AtomicCheckpointHook', minutes=0, max_keep_ckpts=2, interval=2),
    )  # fmt: skip
    if options.get('loop') == 'iter':
        settings['checkpoint']['interval'] = 4
    runner = tiny.tiny_runner(folder, **settings | options)
    if 'RANK' not in os.environ:
        runner.register_hook(_Diary(folder))
    runner.train()
    return tiny.digest(runner)


class _Diary(Hook):
    """Writes down each step and each batch of a validation."""

    priority = 'VERY_HIGH'

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.file = open(folder / 'diary', 'a')  # noqa: SIM115

    def before_train_iter(self, runner, *_, **__) -> None:
        print('step', runner.iter + 1, file=self.file, flush=True)

    def before_val_iter(self, runner, *_, **__) -> None:
        print('validation', runner.iter, file=self.file, flush=True)


def stop_at(folder: Path, place: str, count: int, number: int, **options) -> None:
    """Train; send a signal to this process at the `count`-th visit of a place."""
    visits = iter(range(1, 10**9))

    def visit() -> None:
        if next(visits) == count:
            with open(folder / 'diary', 'a') as file:
                print('signal', file=file)
            os.kill(os.getpid(), number)

    def before(owner, name: str) -> None:
        original = getattr(owner, name)

        def visiting(*arguments, **keywords):
            visit()
            return original(*arguments, **keywords)

        setattr(owner, name, visiting)

    if place == 'loading':
        before(tiny.TinyDataset, '__getitem__')
    elif place == 'forward':
        before(tiny.TinyModel, 'forward')
    elif place == 'backward':
        before(Tensor, 'backward')
    elif place == 'validation':
        before(tiny.TinyMetric, 'process')
    else:
        before(files._Sealing, 'write')
    train(folder, **options)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_signals(runs, tally, loop):
    signal_runs(runs, tally, loop, times=25)


def signal_runs(runs: Path, tally, loop: str, times: int) -> None:
    draw = random.Random(f'{loop}{times}')
    whole = tiny.fork(runs / 'whole.result', train, runs / 'whole', loop=loop).result()
    kinds = Counter()
    for turn in range(times):
        place, number = PLACES[turn % len(PLACES)], draw.choice([signal.SIGTERM, signal.SIGUSR1])
        count = draw.randrange(1, {'loading': 30, 'saving': 60, 'validation': 5}.get(place, 15))
        folder = runs / f'run{turn}'
        folder.mkdir()
        child = tiny.fork(runs / 'result', stop_at, folder, place, count, number, loop=loop)
        where = f'{number} at visit {count} of {place} in {folder}'
        assert child.wait() == EXIT_CODE, where
        diary = (folder / 'diary').read_text().split('\n')[:-1]
        after = diary[diary.index('signal') + 1 :]
        # At most the step in hand, or the one whose data are being loaded; or a batch.
        assert len(after) <= 1, f'{where}: {after}'
        saved, passed_over = newest_intact(folder)
        assert not passed_over
        steps = [line for line in diary if line.startswith('step')]
        assert saved.iteration == int(steps[-1].split()[1]), where
        assert not list(folder.glob('.*'))
        result = tiny.fork(runs / 'result', train, folder, loop=loop).result()
        assert result == whole, where
        kinds[place] += 1
    done = ', '.join(f'{count} in {place}' for place, count in kinds.items())
    tally(f'{loop} loop: {times} signals ({done}): saved within a step, code 75, bit-equal')
