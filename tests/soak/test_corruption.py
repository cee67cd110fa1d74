"""1,000 damaged checkpoints: each is seen, and the previous one is used."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from backbones.checkpoints import CheckpointError, read_checkpoint, seal_holds
from poolformer_dense.runner.resume import newest_intact
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0),
)


def test_damage(runs, tally):
    damage_all(runs, tally, times=1000, resumed=20)


def damage_all(runs: Path, tally, times: int, resumed: int) -> None:
    """Damage the newest of two checkpoints in turn; go on with a run each `times / resumed`."""
    draw = random.Random(times)
    folder = runs / 'run'
    whole = tiny.fork(runs / 'whole', _train, folder, 12).result()
    newest, previous = folder / 'epoch_2.pth', folder / 'epoch_1.pth'
    content = newest.read_bytes()
    kinds = {'truncations': 0, 'bit flips': 0}
    for number in range(times):
        kind = draw.choice(list(kinds))
        kinds[kind] += 1
        # Half of the places are near the ends, where the structure of the file is.
        near = draw.randrange(300) * draw.choice([1, -1]) % len(content)
        place = draw.choice([near, draw.randrange(len(content))])
        if kind == 'truncations':
            damaged = content[:place]
        else:
            damaged = bytearray(content)
            damaged[place] ^= 1 << draw.randrange(8)
        newest.write_bytes(damaged)
        where = f'{kind} at {place} of {len(content)}'
        assert seal_holds(newest) is False, where
        with pytest.raises(CheckpointError):
            read_checkpoint(newest)
        saved, skipped = newest_intact(folder)
        assert saved.path == previous, where
        # With a bit of its iteration changed it may look older, and is not read.
        dated = kind == 'bit flips' and not skipped
        assert dated or [line.partition(': ')[0] for line in skipped] == [str(newest)], where
        if number % (times // resumed) == 0:
            again = shutil.copytree(folder, runs / f'again{number}')
            result = tiny.fork(runs / 'result', _train, again, 12, resume=True).result()
            assert result == whole, where
            assert seal_holds(again / 'epoch_2.pth') is True
            shutil.rmtree(again)
    newest.write_bytes(content)
    assert newest_intact(folder)[0].path == newest
    done = ' and '.join(f'{count} {kind}' for kind, count in kinds.items())
    tally(f'{done}: all seen, the previous one used; {resumed} runs resumed, bit-equal')


def _train(folder: Path, steps: int, resume: bool = False) -> dict[str, str]:
    assert not resume or os.path.exists(folder / 'last_checkpoint')
    runner = tiny.tiny_runner(folder, steps=steps, resume=resume, **OPTIONS)
    runner.train()
    return tiny.digest(runner)
