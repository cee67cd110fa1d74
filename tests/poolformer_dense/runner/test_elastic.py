"""A rank is killed under torchrun: all start again and end as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from poolformer_dense import files
from tests.poolformer_dense.runner import launching
from tests.poolformer_dense.runner.test_resume import content

pytestmark = pytest.mark.slow
OPTIONS = dict(
    ranks=2, loop='iter', steps=24, ema=True,
    checkpoint=dict(type='AtomicCheckpointHook', minutes=0, interval=4, max_keep_ckpts=1),
)  # fmt: skip


@pytest.fixture
def uninterrupted(tmp_path, free_port) -> list[dict[str, str]]:
    folder = tmp_path / 'whole'
    with launching.launched(folder, 2, free_port, OPTIONS) as process:
        assert process.wait(launching.DEADLINE) == 0, (folder / 'output').read_text()[-3000:]
    return _digests(folder)


def _digests(folder: Path) -> list[dict[str, str]]:
    digests = [json.loads((folder / f'digest{rank}').read_text()) for rank in (0, 1)]
    # What is logged is the first rank's; a checkpoint has no other.
    del digests[1]['logged']
    return digests


def test_a_killed_rank_is_replaced(uninterrupted, tmp_path, free_port):
    folder = tmp_path / 'killed'
    folder.mkdir()
    # What an earlier run left is not what the restart goes on from.
    (folder / 'run').mkdir()
    files.save_sealed(content(99), folder / 'run/iter_99.pth')
    with launching.launched(folder, 2, free_port, OPTIONS, MAX_RESTARTS='1') as process:
        log = folder / 'output'
        launching.wait_for(lambda: launching.progress(folder, 1)[-1:] >= [10], process, log)
        os.kill(launching.ranks(process)[1], signal.SIGKILL)
        assert process.wait(launching.DEADLINE) == 0, log.read_text()[-3000:]
    done = launching.progress(folder)
    again = next(i for i in range(1, len(done)) if done[i] <= done[i - 1])
    assert done[again] > 1, 'it began at the beginning'
    assert _digests(folder) == uninterrupted


def test_a_killed_rank_of_another_node_is_replaced(uninterrupted, tmp_path, free_port):
    # Each node counts the failures of its own processes.
    folder = tmp_path / 'nodes'
    log, settings = folder / 'output', dict(NNODES='2', MAX_RESTARTS='1')
    with (
        launching.launched(folder, 1, free_port, OPTIONS, **settings) as first,
        launching.launched(folder, 1, free_port, OPTIONS, **settings) as second,
    ):
        launching.wait_for(lambda: launching.progress(folder, 1)[-1:] >= [10], first, log)
        os.kill(launching.ranks(second)[0], signal.SIGKILL)
        assert first.wait(launching.DEADLINE) == 0, log.read_text()[-3000:]
        assert second.wait(launching.DEADLINE) == 0, log.read_text()[-3000:]
    done = launching.progress(folder)
    again = next(i for i in range(1, len(done)) if done[i] <= done[i - 1])
    assert done[again] > 1, 'it began at the beginning'
    assert _digests(folder) == uninterrupted
