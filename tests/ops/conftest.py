"""Fixtures of the operators' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture
def repaired_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repair the interpreter's bfloat16: it cuts bits off and multiplies them as integers (3.6)."""
    triton = pytest.importorskip('triton', reason='the Triton compiler is not installed')
    if not triton.knobs.runtime.interpret:
        return
    import numpy as np
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    def convert(values: np.ndarray, source: object, target: object, _: object) -> np.ndarray:
        if target == bfloat16:
            bits = torch.from_numpy(np.asarray(values)).bfloat16().view(torch.int16)
            return bits.numpy().view(np.uint16)
        return (values.astype(np.uint32) << 16).view(np.float32)

    multiply = interpreter.InterpreterBuilder.create_dot

    def dot(builder: object, a: object, b: object, *rest: object) -> object:
        wide = [builder.cast_impl(x, float32) if x.dtype == bfloat16 else x for x in (a, b)]
        return multiply(builder, *wide, *rest)

    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', dot)
    monkeypatch.setattr(interpreter, '_convert_float', convert)
    # Integer overflow checks are half of its time.
    options = interpreter.InterpreterOptions(sanitize_overflow=False)
    monkeypatch.setattr(interpreter.interpreter_builder, 'options', options)


@pytest.fixture
def watched_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold what the interpreter runs to a GPU's rules."""
    triton = pytest.importorskip('triton', reason='the Triton compiler is not installed')
    if not triton.knobs.runtime.interpret:
        yield  # compute-sanitizer's work
        return
    from triton.runtime.interpreter import InterpreterBuilder

    from backbones.ops.backends.triton.common import observed
    from tests.ops.watched_memory import WatchedMemory

    watched = WatchedMemory()
    for name, method in watched.methods().items():
        monkeypatch.setattr(InterpreterBuilder, name, method)
    with observed(watched):
        yield
