"""The operators on a CPU against their specification, in outputs and every gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones import ops
from backbones.ops.backends import cpu, library, native

EPS = 1e-5
NAMES = {
    'norm': ('weight', 'bias'),
    'pool_mix': ('weight', 'bias', 'scale'),
    'norm_mlp': ('weight', 'bias', 'w1', 'b1', 'w2', 'b2', 'scale'),
}


@pytest.fixture(params=['cpu', 'native'])
def backend(request):
    if request.param == 'native' and not library.compiled():
        pytest.skip('the loops can not be compiled')
    return request.param


def _inputs(shape, seed=0, mean=0.0, std=1.0, hidden=None):
    rng = torch.Generator().manual_seed(seed)

    def draw(*size):
        return torch.randn(*size, generator=rng, dtype=torch.float64)

    batch, dim = shape[:2]
    hidden = hidden or 4 * dim
    return dict(
        x=draw(*shape) * std + mean,
        weight=1 + 0.3 * draw(dim),
        bias=0.3 * draw(dim),
        w1=draw(hidden, dim, 1, 1) / dim**0.5,
        b1=0.1 * draw(hidden),
        w2=draw(dim, hidden, 1, 1) / hidden**0.5,
        b2=0.1 * draw(dim),
        scale=0.5 * draw(dim),
        drop=torch.tensor([0.0, 1.25, 1.25])[:batch].double(),
        grad=draw(*shape),
    )


def _call(operator, values, drop, **options):
    if operator == 'norm':
        return ops.modified_layer_norm(*values, EPS, **options)
    if operator == 'pool_mix':
        return ops.pool_mix(*values, drop, EPS, **options)
    return ops.norm_mlp(ops.MLPInputs(*values, drop), EPS, **options)


def _run(operator, inputs, dtype, backend, absent=(), autocast=None, **options):
    """Outputs and gradients in the order of NAMES, x first."""
    leaves = {
        name: inputs[name].detach().to(dtype).requires_grad_()
        for name in ('x', *NAMES[operator])
        if name not in absent
    }
    values = [leaves.get(name) for name in ('x', *NAMES[operator])]
    drop = None if 'drop' in absent else inputs['drop'].to(dtype)
    with torch.autocast('cpu', autocast or torch.bfloat16, enabled=autocast is not None):
        out = _call(operator, values, drop, backend=backend, **options)
    grads = torch.autograd.grad(out, list(leaves.values()), inputs['grad'].to(out.dtype))
    return dict(zip(['out', *leaves], [out, *grads], strict=True))


def _rounded(inputs, dtype):
    """The inputs as this dtype holds them, in float64: truth and candidates see the same."""
    return {name: value.to(dtype).double() for name, value in inputs.items()}


def _error(result, truth):
    difference = {name: result[name].detach().double() - truth[name] for name in truth}
    return {name: float(d.norm() / (truth[name].norm() + 1e-30)) for name, d in difference.items()}


def _assert_as_good_as_torch(operator, inputs, dtype, backend, autocast=None, absent=(), **options):
    inputs = _rounded(inputs, dtype)
    truth = _run(operator, inputs, torch.float64, 'reference', absent)
    eager = _error(_run(operator, inputs, dtype, 'reference', absent, autocast), truth)
    ours = _error(_run(operator, inputs, dtype, backend, absent, autocast, **options), truth)
    # Where torch happens to be nearly exact, a few roundings are allowed instead.
    floor = 4 * torch.finfo(dtype).eps
    for name, error in ours.items():
        assert error <= max(2 * eager[name], floor), (name, error, eager[name])


@pytest.mark.parametrize('absent', [(), ('scale',), ('drop',), ('bias', 'b1', 'b2', 'drop')])
@pytest.mark.parametrize('operator', NAMES)
def test_float64_is_exact(operator, absent):
    inputs = _inputs((3, 6, 5, 7))
    truth = _run(operator, inputs, torch.float64, 'reference', absent)
    for options in [{}, {'recompute': True}] if operator == 'norm_mlp' else [{}]:
        ours = _run(operator, inputs, torch.float64, 'cpu', absent, **options)
        for name, value in truth.items():
            torch.testing.assert_close(
                ours[name], value, rtol=1e-11, atol=1e-11, msg=f'{operator} {name}'
            )


@settings(max_examples=25)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)
    ).filter(lambda s: s[1] * s[2] * s[3] > 3),
    seed=st.integers(0, 99),
    chunk=st.sampled_from([1, 800, 1 << 20]),
)
@pytest.mark.parametrize('operator', NAMES)
def test_any_shape_and_chunk(operator, shape, seed, chunk):
    inputs = _inputs(shape, seed)
    truth = _run(operator, inputs, torch.float64, 'reference')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, 'CHUNK', chunk)
        ours = _run(operator, inputs, torch.float64, 'cpu')
    for name, value in truth.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-9, msg=name)


@settings(max_examples=25)
@given(
    shape=st.tuples(
        st.integers(1, 3), st.integers(1, 40), st.integers(1, 9), st.integers(1, 9)
    ).filter(lambda s: s[1] * s[2] * s[3] > 9),
    seed=st.integers(0, 99),
    chunk=st.sampled_from([1, 800, 1 << 20]),
    threads=st.integers(1, 3),
    absent=st.sampled_from([(), ('scale',), ('drop',), ('bias', 'b1', 'b2', 'drop')]),
    recompute=st.booleans(),
)
@pytest.mark.parametrize('operator', NAMES)
@pytest.mark.skipif(not library.compiled(), reason='the loops can not be compiled')
def test_any_shape_and_chunk_in_loops(operator, shape, seed, chunk, threads, absent, recompute):
    inputs = _rounded(_inputs(shape, seed), torch.float32)
    truth = _run(operator, inputs, torch.float64, 'reference', absent)
    options = {'recompute': True} if recompute and operator == 'norm_mlp' else {}
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, 'CHUNK', chunk)
        torch.set_num_threads(threads)
        ours = _run(operator, inputs, torch.float32, 'native', absent, **options)
        torch.set_num_threads(before)
    # Where a sample hardly varies, its gradient is a difference of large numbers.
    spread = inputs['x'].std((1, 2, 3), correction=0).min().clamp(max=1).item()
    for name, value in truth.items():
        scale = 1 + value.abs().max().item()
        bound = 2e-5 * scale / spread**2
        torch.testing.assert_close(ours[name].double(), value, rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ('mean', 'std'), [(0.0, 1.0), (10.0, 1.0), (1e3, 1.0), (0.0, 1e-4)], ids=str
)
@pytest.mark.parametrize('operator', NAMES)
def test_as_accurate_as_torch(operator, mean, std, dtype, backend):
    inputs = _inputs((2, 16, 19, 23), mean=mean, std=std)
    _assert_as_good_as_torch(operator, inputs, dtype, backend)


@pytest.mark.parametrize('autocast', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('mean', [0.0, 10.0, 1e3])
@pytest.mark.parametrize('operator', NAMES)
def test_as_accurate_as_torch_under_autocast(operator, mean, autocast, backend):
    inputs = _inputs((2, 16, 19, 23), mean=mean)
    _assert_as_good_as_torch(operator, inputs, torch.float32, backend, autocast)


def test_autocast_keeps_the_stream_in_float32():
    inputs = _inputs((2, 8, 6, 6))
    for dtype in (torch.float32, torch.bfloat16):
        x = inputs['x'].to(dtype)
        w = {name: inputs[name].float() for name in NAMES['norm_mlp']}
        with torch.autocast('cpu', torch.bfloat16):
            mixed = ops.pool_mix(x, w['weight'], w['bias'], w['scale'], None, EPS)
            out = ops.norm_mlp(ops.MLPInputs(mixed, *w.values(), None), EPS)
        assert mixed.dtype == out.dtype == torch.float32


@pytest.mark.parametrize(
    'layout',
    {
        'contiguous': lambda x: x.contiguous(),
        'channels_last': lambda x: x.contiguous(memory_format=torch.channels_last),
        'a slice': lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
        'transposed': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize('operator', NAMES)
def test_any_memory_layout(operator, layout, backend):
    dtype, near = (torch.float64, 1e-11) if backend == 'cpu' else (torch.float32, 1e-5)
    inputs = _rounded(_inputs((2, 6, 5, 7)), dtype)
    truth = _run(operator, inputs, torch.float64, 'reference')
    for name in ('x', 'grad'):
        changed = dict(inputs, **{name: layout[1](inputs[name])})
        ours = _run(operator, changed, dtype, backend)
        for key, value in truth.items():
            atol = near * (1 + value.abs().max().item())
            torch.testing.assert_close(ours[key].double(), value, rtol=0, atol=atol, msg=key)


@pytest.mark.parametrize('operator', NAMES)
def test_uninitialised_memory_is_never_read(operator, backend, monkeypatch):
    dtype, near = (torch.float64, 1e-11) if backend == 'cpu' else (torch.float32, 1e-5)
    inputs = _rounded(_inputs((2, 6, 5, 7)), dtype)
    truth = _run(operator, inputs, torch.float64, 'reference')
    plain_like, plain_new = torch.empty_like, torch.Tensor.new_empty
    monkeypatch.setattr(
        torch, 'empty_like', lambda *a, **k: plain_like(*a, **k).fill_(float('nan'))
    )
    monkeypatch.setattr(
        torch.Tensor, 'new_empty', lambda *a, **k: plain_new(*a, **k).fill_(float('nan'))
    )
    ours = _run(operator, inputs, dtype, backend)
    for name, value in truth.items():
        atol = near * (1 + value.abs().max().item())
        torch.testing.assert_close(ours[name].double(), value, rtol=0, atol=atol, msg=name)


@pytest.mark.parametrize('operator', NAMES)
def test_gradcheck(operator):
    inputs = _inputs((2, 3, 3, 4), hidden=5)
    values = [inputs[name].requires_grad_() for name in ('x', *NAMES[operator])]
    drop = inputs['drop']
    assert torch.autograd.gradcheck(lambda *t: _call(operator, t, drop, backend='cpu'), values)


def test_the_dead_bias_has_a_gradient_of_zeros(backend):
    inputs = _inputs((2, 6, 5, 7))
    grads = _run('pool_mix', inputs, torch.float32, backend)
    assert torch.equal(grads['bias'], torch.zeros(6))


@pytest.mark.parametrize('operator', NAMES)
def test_torch_checks_the_registration(operator, backend):
    inputs = {name: value.float() for name, value in _inputs((2, 6, 5, 7)).items()}
    x = inputs['x'].contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = [inputs[name].requires_grad_() for name in NAMES[operator]]
    extra = {
        'norm': [EPS],
        'pool_mix': [inputs['drop'], EPS],
        'norm_mlp': [inputs['drop'], EPS, torch.float32, True],
    }[operator]
    name = 'modified_layer_norm' if operator == 'norm' else operator
    forward = getattr(torch.ops.metaformer, name).default
    backward = getattr(torch.ops.metaformer, f'{name}_backward').default
    chosen = (backend, 'source')
    torch.library.opcheck(forward, (x, *weights, *extra, *chosen))
    given = [x.detach(), *(w.detach() for w in weights)]
    given += [option for option in extra if isinstance(option, torch.Tensor)]
    options = [option for option in extra if not isinstance(option, torch.Tensor)]
    out, *kept = forward(*given, *options, *chosen)
    torch.library.opcheck(backward, (torch.ones_like(out), *given, *kept, *options, *chosen))


def test_reference_is_the_papers_equation():
    inputs = _inputs((2, 6, 5, 7))
    x = inputs['x']
    centred = x - x.mean((1, 2, 3), keepdim=True)
    normed = centred / (centred.square().mean((1, 2, 3), keepdim=True) + EPS).sqrt()
    normed = normed * inputs['weight'].view(-1, 1, 1) + inputs['bias'].view(-1, 1, 1)
    pooled = torch.zeros_like(x)
    for i in range(5):
        for j in range(7):
            window = normed[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2]
            pooled[:, :, i, j] = window.mean((2, 3))
    expected = x + inputs['scale'].view(-1, 1, 1) * (pooled - normed)
    arguments = (inputs[name] for name in ('weight', 'bias', 'scale'))
    out = ops.pool_mix(x, *arguments, None, EPS, backend='reference')
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.skipif(not library.compiled(), reason='the loops can not be compiled')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gelu_and_its_slope_everywhere(dtype):
    values = [*torch.linspace(-9, 9, 20001).tolist(), -1e30, -1e4, 1e4, 1e30, 0.0, math.nan]
    v = torch.tensor([values]).to(dtype)
    exact, none = v.double().requires_grad_(), torch.zeros(v.shape[1])
    truth = torch.nn.functional.gelu(exact)
    (slope,) = torch.autograd.grad(truth.sum(), exact)
    found, grad, again = v.clone(), torch.ones_like(v), torch.empty_like(v)
    library.loops('gelu', found, none, None, *v.shape, dtype=dtype)
    totals = torch.zeros(v.shape[1], dtype=torch.float64)
    library.loops('gelu_gradient', v, none, grad, again, totals, *v.shape, dtype=dtype)
    torch.testing.assert_close(found, again, rtol=0, atol=0, equal_nan=True)
    near = 2e-7 if dtype == torch.float32 else 4e-3
    bound = near * truth.detach().abs().clamp(min=3)
    assert ((found - truth).detach().abs() <= bound)[0, :-1].all()
    assert ((grad - slope).abs() <= (3e-7 if dtype == torch.float32 else 4e-3))[0, :-1].all()
    assert found[0, -1].isnan()
    assert not found[0, values.index(-1e30)]  # exactly
    torch.testing.assert_close(totals.float()[:-1], grad[0, :-1].float(), rtol=4e-3, atol=2e-5)
