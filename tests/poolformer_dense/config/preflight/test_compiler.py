"""Whether an unknown mode or a missing compiler is told before the model is built."""

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


@pytest.mark.parametrize(('mode', 'known'), [('reduce-overhead', True), ('reduce-overhed', False)])
def test_modes_are_those_of_torch(detection, monkeypatch, mode, known):
    monkeypatch.setattr(compiler, 'compiler_fault', lambda device: None)
    plan = Plan(detection(), ['train'])
    plan.cfg.merge_from_dict({'compile.mode': mode, 'compile.dynamic': False})
    found = [notice.text for notice in compiler.check_compiler(plan)]
    assert len(found) == (not known)
    assert known or "compile.mode='reduce-overhed'" in found[0]
    assert known or 'default, ' in found[0]
