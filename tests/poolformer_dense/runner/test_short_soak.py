"""Short versions of `make soak`."""

from __future__ import annotations

import pytest

from tests.soak.test_corruption import damage_all
from tests.soak.test_disk_full import full_disk, small_disk
from tests.soak.test_kills import TestThroughTheTool, kills_in_saves
from tests.soak.test_rank_kills import kill_ranks
from tests.soak.test_signals import signal_runs
from tests.soak.test_tampering import tamper_all

__all__ = ['small_disk']
# Not a test of this file.
_ThroughTheTool = TestThroughTheTool
del TestThroughTheTool


@pytest.fixture
def tally():
    return print


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_kills(runs, tally, loop):
    kills_in_saves(runs, tally, loop, kills=6, inside=3, runs_count=2)


def test_damage(runs, tally):
    damage_all(runs, tally, times=40, resumed=1)


def test_tampering(runs, tally):
    tamper_all(runs, tally, times=30, resumed=1)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_signals(runs, tally, loop):
    signal_runs(runs, tally, loop, times=5)


def test_a_full_disk(small_disk, runs, tally):
    full_disk(small_disk, runs, tally)


@pytest.mark.slow
def test_rank_kills(tmp_path, free_port, tally):
    kill_ranks(tmp_path, free_port, tally, kills=1, per_run=1)


@pytest.mark.slow
def test_kills_through_the_tool(root, shapes, tmp_path, tally):
    _ThroughTheTool().kills(root, shapes, tmp_path, tally, kills=2, inside=1)
