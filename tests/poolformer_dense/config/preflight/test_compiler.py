"""Whether a missing compiler is told before the model is built."""

from __future__ import annotations

import pytest

from poolformer_dense.config.preflight import compiler
from poolformer_dense.config.preflight.plan import Plan


@pytest.mark.parametrize(
    ('options', 'device', 'said'),
    [
        (True, 'cpu', 'no C++ compiler (no-such-compiler)'),
        (dict(dynamic=False), 'cpu', 'no C++ compiler'),
        (True, 'cuda:1', 'needs triton'),
        (dict(backend='eager'), 'cpu', None),
        (False, 'cpu', None),
        (None, 'cpu', None),
    ],
)
def test_what_compiles_must_be_there(detection, monkeypatch, options, device, said):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(compiler, 'get_device', lambda: device)
    plan = Plan(detection(), ['train'])
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    plan.cfg.compile = options
    found = [notice.text for notice in compiler.check_compiler(plan)]
    assert len(found) == (said is not None)
    assert said is None or said in found[0]
