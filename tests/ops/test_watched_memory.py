"""The watch over the kernels' memory finds each fault that it is there for."""

from __future__ import annotations

import pytest
import torch

triton = pytest.importorskip('triton', reason='the Triton compiler is not installed')
if not triton.knobs.runtime.interpret:
    pytest.skip('needs TRITON_INTERPRET=1', allow_module_level=True)

import triton.language as tl  # noqa: E402

from backbones.ops.backends.triton.common import kernel, launch  # noqa: E402

pytestmark = pytest.mark.usefixtures('watched_memory')


@kernel
def reversed_in_place(x, out, pixels):
    index = tl.program_id(0) * 4 + tl.arange(0, 4)
    inside = index < pixels
    tl.store(out + pixels - 1 - index, tl.load(x + index, mask=inside), mask=inside)


@kernel
def beyond(x, out, pixels):
    index = tl.program_id(0) * 4 + tl.arange(0, 4)
    tl.store(out + index, tl.load(x + index), mask=index < pixels)


@kernel
def each_its_own(x, out, pixels):
    tl.store(out, tl.program_id(0) + tl.load(x))


@kernel
def reads_on(x, out, pixels):
    index = tl.program_id(0) * 4 + tl.arange(0, 4)
    inside = index < pixels
    tl.store(out + index, tl.load(x + index, mask=inside) + 1, mask=inside)
    tl.store(x + index, tl.load(out + index, mask=inside), mask=inside)


@kernel
def adds(x, out, pixels):
    tl.atomic_add(out, tl.load(x))


@kernel
def fills(x, out, pixels):
    tl.store(out + tl.program_id(0), 1.0)


@pytest.mark.parametrize(
    ('faulty', 'in_place', 'message'),
    [
        (beyond, False, 'beyond: program 1 is outside of all tensors'),
        (reversed_in_place, True, 'reads what another one writes'),
        (each_its_own, False, 'an address gets two values'),
        (reads_on, False, 'reads what it has written'),
    ],
)
def test_a_fault_is_found(faulty: object, in_place: bool, message: str) -> None:
    x = torch.randn(6)
    with pytest.raises(AssertionError, match=message):
        launch(faulty, 2, x, x if in_place else torch.empty(6), 6)


def test_atomics_are_refused() -> None:
    with pytest.raises(triton.runtime.errors.InterpreterError, match='atomics'):
        launch(adds, 2, torch.randn(6), torch.zeros(6), 6)


def test_what_is_right_passes() -> None:
    x, out = torch.randn(6), torch.empty(6)
    launch(reversed_in_place, 2, x, out, 6)
    assert torch.equal(out, x.flip(0))
    launch(fills, 6, x, out, 6)
    assert out.eq(1).all()
