"""The numerical guard over thousands of steps: every bad one is caught, no good one is."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from poolformer_dense.runner.numerical_guard import NumericalGuardHook
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny
from tests.poolformer_dense.runner.poison import (
    ALL,
    PARAMETERS,
    Trace,
    alarms,
    guarded_runner,
    hook_of,
    train_rank,
)

VALUES = ('nan', 'inf', '-inf')


@pytest.mark.parametrize('value', ['usual', 'big'])
def test_2000_clean_steps_raise_no_alarm(
    runs: Path, value: str, tally: Callable[[str], None]
) -> None:
    poison = {}
    if value == 'big':
        poison = dict(gradients={i: PARAMETERS[i % 5] for i in range(0, 2000, 3)}, value='big')
    runner = guarded_runner(
        runs / 'run', poison, loop='iter', steps=2000, checkpoint=dict(interval=1000)
    )
    runner.train()
    assert len(hook_of(runner, Trace).steps) == 2000
    assert not alarms(runner)
    tally('2,000 clean steps, 0 alarms')


@pytest.mark.parametrize('name', ['retinanet', 'mask_rcnn', 'fpn'])
def test_stock_configs_raise_no_alarm(
    runs: Path, root: Path, shapes: Path, name: str, tally: Callable[[str], None]
) -> None:
    options = {
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
    }
    options |= {'train_cfg.max_iters': 60} if name == 'fpn' else {'train_cfg.max_epochs': 20}
    runner = build_runner(tiny.demo_config(root, name, shapes, runs / name, options))
    runner.train()
    assert hook_of(runner, NumericalGuardHook)
    assert not alarms(runner)
    tally(f'{runner.iter} clean steps of a {name}, 0 alarms')


def test_bad_steps_leave_no_trace(runs: Path, tally: Callable[[str], None]) -> None:
    steps, caught = 100, 0
    for seed in range(20):
        draw = random.Random(seed)
        bad = draw.sample(range(steps), 20)
        poison = dict(
            losses=tuple(bad[:10]),
            gradients={i: draw.choice(PARAMETERS) for i in bad[10:]},
            value=draw.choice(VALUES),
        )
        group = draw.choice([1, 1, 4])
        runner = guarded_runner(
            runs / f'run{seed}',
            poison,
            dict(limit=steps),
            loop='iter',
            steps=steps,
            accumulate=group,
            checkpoint=dict(interval=steps),
        )
        runner.train()
        dropped = {i for b in bad for i in range(b, b - b % group + group)}
        trace = hook_of(runner, Trace)
        for i in range(steps):
            assert (trace.unchanged(i) == ALL) == (i in dropped), (seed, i)
        assert not dropped & set(trace.steps)
        assert len(alarms(runner)) == len(bad)
        caught += len(bad)
    tally(f'{caught} of {caught} losses and gradients caught, the step before bit-equal')


def test_two_ranks_agree(runs: Path, tally: Callable[[str], None]) -> None:
    for seed in range(5):
        draw = random.Random(seed)
        bad = draw.sample(range(12), 4)
        poison = dict(
            losses=tuple(bad[:2]),
            gradients={i: draw.choice(PARAMETERS) for i in bad[2:]},
            value=draw.choice(VALUES),
            rank=draw.randrange(2),
        )
        folder = runs / f'run{seed}'
        children = tiny.fork_ranks(2, runs / f'ranks{seed}', train_rank, folder, poison, {})
        results = [child.result() for child in children]
        for result in results:
            for i, unchanged in enumerate(result['unchanged']):
                assert (unchanged == ALL) == (i in bad), (seed, i)
        for mine, theirs in zip(results[0]['states'], results[1]['states'], strict=True):
            assert mine['parameters'] == theirs['parameters']
            assert mine['optimizer'] == theirs['optimizer']
    tally('20 bad steps of one of two ranks, skipped by both')
