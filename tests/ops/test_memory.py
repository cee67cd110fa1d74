"""What training keeps for backward is what docs/kernels.md says."""

from __future__ import annotations

import pytest

from backbones import PoolFormer
from poolformer_dense.measure.analysis import count_saved_bytes

SIZE = (512, 512)


@pytest.fixture(scope='module')
def module_by_module():
    return sum(count_saved_bytes(PoolFormer('s12', backend='reference'), SIZE))


@pytest.mark.parametrize(
    ('options', 'mib', 'share'),
    [
        (dict(backend='reference'), 297.8, 1.0),
        (dict(), 133.8, 0.46),
        (dict(recompute='mlp'), 51.8, 0.20),
        (dict(with_cp=True), 31.3, 0.20),
    ],
    ids=str,
)
def test_bytes_kept_for_backward(module_by_module, options, mib, share):
    found = sum(count_saved_bytes(PoolFormer('s12', **options), SIZE))
    assert found / 2**20 == pytest.approx(mib, abs=0.1)
    assert found <= share * module_by_module
