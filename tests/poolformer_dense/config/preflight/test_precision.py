"""Whether a training's precision is refused where the device does not compute in it."""

from __future__ import annotations

import pytest
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS

from poolformer_dense.config.preflight import precision
from poolformer_dense.config.preflight.plan import Plan


@OPTIM_WRAPPERS.register_module()
class OwnAmpOptimWrapper(AmpOptimWrapper):
    """As users write them."""


@pytest.fixture
def on(monkeypatch):
    return lambda device: monkeypatch.setattr(precision, 'get_device', lambda: device)


def found(detection, splits=('train', 'val'), **wrapper):
    cfg = detection()
    cfg.optim_wrapper.update(wrapper)
    return [notice.text for notice in precision.check_precision(Plan(cfg, splits))]


@pytest.mark.parametrize('dtype', ['bfloat16', None])
def test_bfloat16_is_for_any_device(detection, on, dtype):
    for device in ('cpu', 'cuda'):
        on(device)
        assert found(detection, type='AmpOptimWrapper', dtype=dtype) == []


@pytest.mark.parametrize(
    ('wrapper', 'said'),
    [
        (dict(type='AmpOptimWrapper', dtype='float16'), 'optim_wrapper.dtype=float16: on a CPU'),
        (dict(type='OwnAmpOptimWrapper'), 'optim_wrapper.type=OwnAmpOptimWrapper: it needs a GPU'),
    ],
)
def test_what_needs_a_gpu_is_refused_on_a_cpu(detection, on, wrapper, said):
    on('cpu')
    [line] = found(detection, **wrapper)
    assert said in line
    assert found(detection, splits=['test'], **wrapper) == []
    on('cuda')
    assert found(detection, **wrapper) == []
