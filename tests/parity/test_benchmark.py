"""Every peer does the same work as ours in the benchmark, which refuses another."""

from __future__ import annotations

import pytest

from poolformer_dense.measure.benchmark import TOLERANCE, Workload, compete
from poolformer_dense.measure.benchmark.task import FORMATS


@pytest.fixture
def _peers(timm, transformers, mmpretrain) -> None:
    """Skip where one is not installed."""


@pytest.mark.usefixtures('_peers')
@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('task', ['infer', 'train'])
def test_peers_take_part_in_both_formats(task, dtype):
    workload = Workload('poolformer_s12', task, dtype, (64, 64), batch=1)
    rows, missing = compete(workload, ['mmpretrain', 'timm', 'hf'], rounds=1, turn=0.0)
    assert missing == []
    peers = [row for row in rows if row.kind == 'peer']
    assert [(row.name, row.memory_format) for row in peers] == [
        (name, memory_format) for name in ('mmpretrain', 'timm', 'hf') for memory_format in FORMATS
    ]
    assert all(row.difference <= TOLERANCE[dtype] for row in rows if row.difference is not None)
    if task == 'train':
        ours = rows[0]
        assert ours.name == 'ours'
        assert all(ours.memory < row.memory for row in peers)


@pytest.mark.usefixtures('_peers')
def test_peers_without_the_preset_are_named():
    workload = Workload('caformer_s18', size=(32, 32), batch=1)
    rows, missing = compete(workload, ['mmpretrain', 'timm', 'hf'], rounds=1, turn=0.0)
    assert {row.name for row in rows if row.kind == 'peer'} == {'timm'}
    assert missing == [
        'mmpretrain has no caformer_s18',
        'transformers has no caformer_s18',
    ]
