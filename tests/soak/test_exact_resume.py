"""Stopped after each of 12 steps, in every kind of loop, loader and group of processes."""

from __future__ import annotations

import pytest

from tests.poolformer_dense.runner.exactness import STEPS, differences


@pytest.mark.parametrize('ema', [False, True], ids=['', 'ema'])
@pytest.mark.parametrize('accumulate', [1, 4], ids=['', 'accumulate'])
@pytest.mark.parametrize('ranks', [1, 2], ids=['1rank', '2ranks'])
@pytest.mark.parametrize('workers', [0, 2], ids=['0workers', '2workers'])
@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_every_stop(runs, tally, loop, workers, ranks, accumulate, ema):
    stops = list(range(1, STEPS + 1))
    found = differences(
        runs, stops, ranks, loop=loop, workers=workers, accumulate=accumulate, ema=ema
    )
    assert found == {stop: set() for stop in (0, *stops)}
    tally(f'{len(stops)} stops, all bit-identical')
