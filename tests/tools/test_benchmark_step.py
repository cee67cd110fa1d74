"""The stages of a whole step, as a user asks for them."""

from __future__ import annotations

import re

import pytest

from poolformer_dense.measure.benchmark.whole import StageClock


@pytest.mark.parametrize(
    ('task', 'stages'),
    [
        pytest.param(
            'train',
            ['backbone', 'neck', 'heads', 'targets and losses', 'backward', 'optimizer'],
            marks=pytest.mark.slow,
        ),
        ('infer', ['backbone', 'neck', 'heads', 'post-processing']),
    ],
)
def test_each_stage_has_its_time(run, shapes, tmp_path, task, stages):
    done = run(
        'benchmark_step.py', 'demo/fpn_poolformer_s12', '--task', task, '--rounds', '1',
        '--threads', '1', '--cfg-options', f'data_root={shapes}/ade',
        'train_dataloader.batch_size=2', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    number = r'(\d+\.\d)'
    rows = re.findall(rf'^ +(\S.*?) +{number} +{number} +\d+\.\d\dx *$', done.stdout, re.MULTILINE)
    times = {stage: (float(ours), float(plain)) for stage, ours, plain in rows}
    assert set(stages) <= set(times)
    assert 'plain PyTorch, ms' in done.stdout
    assert min(times['backbone']) > 0
    whole = times.pop('whole step')
    for i in (0, 1):  # with one round, the stages are the step, but for rounding
        parts = sum(each[i] for each in times.values())
        assert abs(whole[i] - parts) < 1


def test_a_stage_within_another_is_counted_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr('poolformer_dense.measure.benchmark.whole.timer', lambda: next(now))
    clock = StageClock()
    with clock.stage('outer'), clock.stage('inner'):
        pass
    assert clock.seconds == {'outer': 1.0 + 4.0, 'inner': 2.0}
