"""20 rank kills under torchrun with two gloo ranks: the end is the same to the bit."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
from pathlib import Path

from tests.poolformer_dense.runner import launching

OPTIONS = dict(
    ranks=2, loop='iter', steps=60, ema=True,
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0, interval=4, max_keep_ckpts=1),
)  # fmt: skip


def test_rank_kills(tmp_path, free_port, tally):
    kill_ranks(tmp_path, free_port, tally, kills=20, per_run=5)


def kill_ranks(folder: Path, port: int, tally, kills: int, per_run: int) -> None:
    draw = random.Random(kills)
    whole = _run(folder / 'whole', port, 0, draw)
    for number in range(kills // per_run):
        assert _run(folder / f'run{number}', port, per_run, draw) == whole
    tally(f'{kills} ranks killed under torchrun in {kills // per_run} runs, bit-equal')


def _run(folder: Path, port: int, kills: int, draw: random.Random) -> list[dict[str, str]]:
    log = folder / 'output'
    with launching.launched(folder, 2, port, OPTIONS, MAX_RESTARTS=str(kills)) as process:
        for _ in range(kills):
            _kill_one(process, folder, draw.randrange(2), draw.randrange(1, 10))
        assert process.wait(launching.DEADLINE) == 0, log.read_text()[-3000:]
    digests = [json.loads((folder / f'digest{rank}').read_text()) for rank in (0, 1)]
    del digests[1]['logged']  # a checkpoint has the first rank's alone
    return digests


def _kill_one(process: subprocess.Popen, folder: Path, rank: int, steps: int) -> None:
    """Kill a rank some steps from now, and wait until all have started again."""
    log, goal = folder / 'output', len(launching.progress(folder, rank)) + steps
    launching.wait_for(lambda: len(launching.progress(folder, rank)) >= goal, process, log)
    old = set(launching.ranks(process))
    os.kill(launching.ranks(process)[rank], signal.SIGKILL)

    def again() -> bool:
        new = launching.ranks(process)
        return len(new) == 2 and not old & set(new)

    launching.wait_for(again, process, log)
