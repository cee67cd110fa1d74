"""Clocks that are wrong, and checkpoints with an entry of another type: runs end as undisturbed."""

from __future__ import annotations

import copy
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from poolformer_dense import files
from poolformer_dense.runner.resume import newest_intact
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(checkpoint=dict(type='AtomicCheckpointHook', minutes=0))
ENTRIES = (
    'meta', 'meta.iter', 'meta.epoch', 'meta.run', 'optimizer', 'optimizer.param_groups',
    'message_hub', 'message_hub.log_scalars', 'state_dict', 'param_schedulers', 'run_state',
    'run_state.position', 'run_state.random',
)  # fmt: skip
VALUES = ([1], ['a'], 'a', b'a', -1, 1.5, True, (1, 2), [[]])
YEARS = 365 * 24 * 3600.0


def test_tampering(runs, tally):
    tamper_all(runs, tally, times=500, resumed=20)


def tamper_all(runs: Path, tally, times: int, resumed: int) -> None:
    """Change dates, and in half of the cases an entry of the newer checkpoint."""
    draw = random.Random(times)
    whole = tiny.fork(runs / 'whole', train, runs / 'undisturbed', 18).result()
    folder = runs / 'run'
    shutil.copytree(runs / 'undisturbed', folder)
    for name in ('epoch_3.pth', 'last_checkpoint'):
        (folder / name).unlink()
    newer, older = folder / 'epoch_2.pth', folder / 'epoch_1.pth'
    contents = {path: torch.load(path, weights_only=False) for path in (newer, older)}
    entries = 0
    for number in range(times):
        for path, content in contents.items():
            content = copy.deepcopy(content)
            date = time.time() + draw.uniform(-20, 20) * YEARS
            content['meta'] |= dict(saved_at=date, time=time.strftime('%Y', time.gmtime(date)))
            where = f'{path.name} of {date:.0f}'
            if path == newer and (tampered := draw.random() < 0.5):
                place = draw.choice(ENTRIES)
                value = draw.choice([v for v in VALUES if place != 'meta.run' or v != 'a'])
                where += f', {place} {value!r}'
                change(content, place, value)
                entries += 1
            files.save_sealed(content, path)
            os.utime(path, (date, date))
        saved, skipped = newest_intact(folder)
        assert saved.path == (older if tampered else newer), where
        assert [line.partition(': ')[0] for line in skipped] == [str(newer)] * tampered, where
        if number % (times // resumed) == 0:
            again = shutil.copytree(folder, runs / f'again{number}')
            ahead = draw.uniform(-20, 20) * YEARS
            result = tiny.fork(runs / 'result', train, again, 18, True, ahead).result()
            assert result == whole, where
            assert newest_intact(again)[0].path == again / 'epoch_3.pth'
            shutil.rmtree(again)
    tally(
        f'{2 * times} wrong dates and {entries} entries of another type: the last good checkpoint '
        f'used; {resumed} runs resumed by wrong clocks, bit-equal'
    )


def change(checkpoint: dict[str, Any], place: str, value: Any) -> None:
    """Put another value in a place that may be within a part."""
    *above, last = place.split('.')
    (checkpoint[above[0]] if above else checkpoint)[last] = value


def train(folder: Path, steps: int, resume: bool = False, ahead: float = 0.0) -> dict[str, str]:
    """Train in a child by a clock that is ahead by so many seconds."""
    now = time.time
    time.time = lambda: now() + ahead
    runner = tiny.tiny_runner(folder, steps=steps, resume=resume, **OPTIONS)
    runner.train()
    return tiny.digest(runner)
