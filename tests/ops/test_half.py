"""float16 and bfloat16 at the layer scales with which trainings start, on every backend."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from backbones import ops
from backbones.ops.backends import balance, library

DIM, EPS = 32, 1e-5


@pytest.fixture(params=['cpu', 'native', 'triton'])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == 'native' and library.loops is None:
        pytest.skip('the loops are not compiled: tools/build_ops.py')
    if request.param == 'triton':
        pytest.importorskip('triton', reason='the Triton compiler is not installed')
        if device_of('triton') == 'cuda' and not torch.cuda.is_available():
            pytest.skip('needs a GPU or TRITON_INTERPRET=1')
        for fixture in ('repaired_bfloat16', 'watched_memory'):
            request.getfixturevalue(fixture)
    return request.param


def device_of(backend: str) -> str:
    """A GPU for compiled kernels."""
    if backend != 'triton':
        return 'cpu'
    import triton

    return 'cpu' if triton.knobs.runtime.interpret else 'cuda'


def inputs(scale: float) -> dict[str, Tensor]:
    w1, w2 = torch.randn(4 * DIM, DIM, 1, 1), torch.randn(DIM, 4 * DIM, 1, 1)
    return dict(
        x=torch.randn(2, DIM, 6, 7),
        weight=torch.rand(DIM) + 0.5,
        bias=torch.randn(DIM),
        w1=0.02 * w1,
        b1=0.1 * torch.randn(4 * DIM),
        w2=0.02 * w2,
        b2=0.1 * torch.randn(DIM),
        scale=scale * (1 + 0.3 * torch.randn(DIM)),
    )


def run(
    tensors: dict[str, Tensor],
    grad: Tensor,
    backend: str,
    dtype: torch.dtype | None = None,
    recompute: bool = False,
) -> dict[str, Tensor]:
    """The branch and the gradient of each input; that of x without the one past the branch."""
    device = device_of(backend)
    leaves = {k: v.to(device, copy=True).requires_grad_() for k, v in tensors.items()}
    with torch.autocast(device, dtype, enabled=dtype is not None):
        given = ops.MLPInputs(**leaves, drop=None)
        out = ops.norm_mlp(given, EPS, recompute, backend=backend)
    out.backward(grad.to(out))
    grads = {name: leaf.grad.double().cpu() for name, leaf in leaves.items()}
    branch = out.detach().double().cpu() - tensors['x'].double()
    return grads | {'branch': branch, 'x': grads['x'] - grad.double()}


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).norm() / truth.norm())


@pytest.mark.parametrize('loss_scale', [1.0, 2.0**14, 2.0**20])
@pytest.mark.parametrize('scale', [1e-6, 1e-5, 1.0])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_gradients_at_any_layer_scale_and_loss_scale(
    dtype: torch.dtype, scale: float, loss_scale: float, backend: str
) -> None:
    """They keep the dtype's digits, whereas plain torch's float16 needs a loss scale that fits."""
    tensors, grad = inputs(scale), loss_scale * torch.randn(2, DIM, 6, 7)
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    truth = run(wide, grad.double(), 'reference')
    found = run(tensors, grad, backend, dtype)
    # The branch is added in float32, which rounds it at the size of x.
    stream = torch.finfo(torch.float32).eps
    lost = {
        'branch': stream * tensors['x'].norm() / truth['branch'].norm(),
        'x': stream * grad.norm() / truth['x'].norm(),
    }
    for name, expected in truth.items():
        allowed = 3 * torch.finfo(dtype).eps + float(lost.get(name, 0))
        assert error(found[name], expected) <= allowed, name


def test_hidden_activations_computed_again_change_nothing(backend: str) -> None:
    tensors, grad = inputs(1e-6), torch.randn(2, DIM, 6, 7)
    kept = run(tensors, grad, backend, torch.float16)
    again = run(tensors, grad, backend, torch.float16, recompute=True)
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.parametrize('scale', [0.0, None])
def test_a_layer_scale_of_zero_or_none(scale: float | None, backend: str) -> None:
    tensors, grad = inputs(1.0), 2.0**14 * torch.rand(2, DIM, 6, 7)
    if scale is None:
        del tensors['scale']
    else:
        tensors['scale'].zero_()
    device = device_of(backend)
    leaves = {k: v.to(device, copy=True).requires_grad_() for k, v in tensors.items()}
    exact = {k: v.double().requires_grad_() for k, v in tensors.items()}
    with torch.autocast(device, torch.float16):
        given = ops.MLPInputs(**({'scale': None} | leaves), drop=None)
        ops.norm_mlp(given, EPS, backend=backend).backward(grad.to(device))
    given = ops.MLPInputs(**({'scale': None} | exact), drop=None)
    ops.norm_mlp(given, EPS, backend='reference').backward(grad.double())
    for name, leaf in leaves.items():
        expected = exact[name].grad
        assert (leaf.grad.cpu() - expected).norm() <= 5e-3 * expected.norm(), name


@pytest.mark.parametrize('bad', [math.inf, math.nan])
def test_an_overflow_stays_one(bad: float, backend: str) -> None:
    """The scaler of the loss looks for it in the gradients of the weights."""
    tensors, grad = inputs(1e-5), torch.randn(2, DIM, 6, 7)
    grad[0, 3, 2, 1] = bad
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the interpreter's, of numpy
        found = run(tensors, grad, backend, torch.float16)
    assert not found['w1'].isfinite().all()
    assert not found['w2'].isfinite().all()
    assert not found['x'].isfinite().all()


def test_powers_of_two() -> None:
    x = torch.tensor([1.0, 1.5, 2.0, 1e-6, 3e30, 2**-126, 0.0, math.inf, math.nan])
    found = balance.inverse_power(x)
    product = (x * found)[:6]
    assert ((product >= 1) & (product < 2)).all()
    assert found[6:].tolist() == [1, 1, 1]
    assert torch.equal(torch.frexp(found).mantissa, torch.full_like(found, 0.5))


@pytest.mark.parametrize('tokens', [1, 4096, 65535, 65536, 131071, 10**6])
def test_sums_of_the_largest_gradients_are_finite(tokens: int) -> None:
    grad = torch.empty(1, 1, 1, 1).expand(1, 3, tokens, 1)
    assert 2 * 8 * tokens * balance.gradient_size(grad) < torch.finfo(torch.float16).max


@pytest.mark.parametrize('tokens', [1, 4095, 4096, 65536, 65537, 10**9])
def test_kernels_balance_as_other_backends_do(tokens: int) -> None:
    weights = pytest.importorskip('backbones.ops.backends.triton.mlp_weights')
    if device_of('triton') == 'cuda':
        pytest.skip('needs TRITON_INTERPRET=1')
    given = {k: v for k, v in inputs(1e-5).items() if k != 'x'}
    grad = torch.linspace(1e-3, 1e3, DIM).view(-1, 1, 1).expand(1, DIM, tokens, 1)
    arguments = ops.MLPInputs(x=grad, drop=None, **given)
    largest = balance.largest_gradient(grad[:, :, :1])
    found = weights.cast_weights(arguments, torch.float16, grad, largest)
    expected = balance.balanced(grad[:, :, :1], arguments)
    size = balance.gradient_size(grad) / balance.gradient_size(grad[:, :, :1])
    assert torch.equal(found.factor, expected.factor * size)
    assert float(found.unit) == float(expected.unit) * size
    torch.testing.assert_close(found.w2, expected.w2.flatten(1).half(), rtol=0, atol=0)
