"""Which backend computes what."""

from __future__ import annotations

import pytest
import torch

from backbones import CAFormer, PoolFormer, PoolFormerV2, ops
from backbones.ops.backends import library

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)


@pytest.fixture(params=['cpu', 'native'])
def fused(request, monkeypatch):
    """What 'auto' takes on a CPU, without compiled loops and with them."""
    monkeypatch.setattr(library, 'loops', None if request.param == 'cpu' else object())
    monkeypatch.setattr(library, 'tried', True)
    return request.param


@pytest.mark.parametrize(
    ('backend', 'device', 'taken'),
    [
        ('auto', 'cpu', 'fused'),
        ('auto', 'cuda', 'reference'),
        ('auto', 'meta', 'reference'),
        ('reference', 'cpu', 'reference'),
        ('cpu', 'cpu', 'cpu'),
    ],
)
def test_the_backend_of_a_device(backend, device, taken, fused):
    assert ops.resolve_backend(backend, device) == taken.replace('fused', fused)


def test_the_context_decides_what_is_left_open(fused):
    with ops.use_backend('reference'):
        assert ops.resolve_backend('auto', 'cpu') == 'reference'
        assert ops.resolve_backend('cpu', 'cpu') == 'cpu'
    assert ops.resolve_backend('auto', 'cpu') == fused


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match='auto, reference, cpu, native, triton'):
        PoolFormer(TINY, backend='fast')
    with pytest.raises(ValueError, match='recompute'):
        PoolFormer(TINY, recompute='all')


def test_the_former_name_of_the_argument_says_the_new_one():
    with pytest.raises(ValueError, match=r"ops='cpu': .* write backend='cpu'"):
        PoolFormer(TINY, ops='cpu')


@pytest.mark.parametrize('backend', ['cpu', 'native'])
def test_a_backend_for_cpus_is_refused_elsewhere(backend):
    with pytest.raises(ValueError, match=f"backend='{backend}' is for a CPU"):
        ops.resolve_backend(backend, 'cuda')


def test_loops_are_refused_where_they_are_not_compiled(monkeypatch):
    monkeypatch.setattr(library, 'loops', None)
    monkeypatch.setattr(library, 'tried', True)
    with pytest.raises(ValueError, match='build-ops'):
        PoolFormer(TINY, backend='native')


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install triton'):
        PoolFormer(TINY, backend='triton')


@pytest.mark.parametrize(
    ('model', 'backends'),
    [
        (lambda: PoolFormer(TINY), ('fused', 'fused')),
        (lambda: PoolFormer(TINY, backend='cpu'), ('cpu', 'cpu')),
        (lambda: PoolFormer(TINY, backend='reference'), ('reference', 'reference')),
        (lambda: PoolFormer(TINY, token_mixers='IdentityMixing'), ('reference', 'fused')),
        (
            lambda: PoolFormer(TINY, token_mixers=dict(type='Pooling', pool_size=5)),
            ('reference', 'fused'),
        ),
        (lambda: PoolFormer(TINY, norm='BatchNorm'), ('reference', 'reference')),
        (lambda: PoolFormer(TINY, activation='ReLU'), ('fused', 'reference')),
        (lambda: PoolFormer(TINY, residual=False), ('reference', 'reference')),
        (lambda: PoolFormerV2('s12'), ('fused', 'reference')),
        (lambda: CAFormer('s18'), ('reference', 'reference')),
    ],
)
def test_what_is_not_covered_takes_the_modules(model, backends, fused):
    expected = tuple(name.replace('fused', fused) for name in backends)
    assert model().stages[0][0].backends('cpu') == expected


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'autocast'])
@pytest.mark.parametrize('backend', ops.BACKENDS)
def test_an_empty_batch(backend, autocast):
    """It gives empty maps and gradients of zeros, on every backend as on the reference."""
    try:
        model = PoolFormer(TINY, drop_path_rate=0.3, backend=backend)
    except ValueError as error:
        pytest.skip(str(error))
    x = torch.empty(0, 3, 64, 96, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outputs = model(x)
    assert [o.shape for o in outputs] == [
        (0, 8, 16, 24),
        (0, 16, 8, 12),
        (0, 24, 4, 6),
        (0, 32, 2, 3),
    ]
    sum(o.sum() for o in outputs).backward()
    assert x.grad.shape == x.shape
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.grad, torch.zeros_like(parameter)), name


@pytest.fixture(params=['cpu', 'native', 'triton'])
def fused_backend(request):
    try:
        return ops.check_backend(request.param)
    except ValueError as error:
        pytest.skip(str(error))


def _operators(x, weight, backend):
    """The output of each operator on a map of 4 channels."""
    yield ops.modified_layer_norm(x, weight, weight, 1e-5, backend)
    yield ops.pool_mix(x, weight, weight, weight, None, 1e-5, backend)
    w1, w2 = weight.new_ones(8, 4, 1, 1), weight.new_ones(4, 8, 1, 1)
    inputs = ops.MLPInputs(x, weight, weight, w1, None, w2, weight, weight, None)
    yield ops.norm_mlp(inputs, 1e-5, backend=backend)


@pytest.mark.parametrize('shape', [(0, 4, 5, 6), (2, 4, 0, 6), (2, 4, 5, 0)], ids=str)
def test_an_operator_takes_an_empty_map(shape, fused_backend):
    """Also one that was compiled or called past the selection of the backend."""
    weight = torch.ones(4, requires_grad=True)
    x = torch.randn(shape, requires_grad=True)
    for out in _operators(x, weight, fused_backend):
        x.grad = weight.grad = None
        out.sum().backward()
        assert out.shape == x.grad.shape == shape
        assert torch.equal(weight.grad, torch.zeros(4))


@pytest.mark.parametrize('autocast', [False, True], ids=['plain', 'autocast'])
def test_a_map_in_float64_with_weights_in_float32(autocast, fused_backend):
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(4, requires_grad=True)
    wide = weight.detach().double().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        outputs = [*_operators(x, weight, fused_backend)]
    for out, expected in zip(outputs, _operators(x, wide, 'reference'), strict=True):
        weight.grad = wide.grad = None
        assert out.dtype == torch.float64
        torch.testing.assert_close(out, expected)
        out.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(weight.grad, wide.grad.float())


def test_a_second_derivative_is_refused_in_one_line(fused_backend):
    x, weight = torch.randn(2, 4, 5, 6, requires_grad=True), torch.rand(4, requires_grad=True)
    for out in _operators(x, weight, fused_backend):
        (slope,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=r"^fused .* backend='reference'") as raised:
            slope.square().sum().backward()
        assert '\n' not in str(raised.value)


@pytest.mark.parametrize('options', [dict(), dict(recompute='mlp'), dict(with_cp=True)], ids=str)
def test_the_backends_agree_in_a_whole_model(options):
    fused = PoolFormer(TINY, drop_path_rate=0.3, **options).double()
    plain = PoolFormer(TINY, drop_path_rate=0.3, backend='reference').double()
    for parameter in fused.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    plain.load_state_dict(fused.state_dict())
    x = torch.randn(3, 3, 64, 96, dtype=torch.float64)
    gradients = []
    for model in (fused, plain):
        torch.manual_seed(1)
        outputs = model(x)
        sum(output.square().sum() for output in outputs).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-8)
