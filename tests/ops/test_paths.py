"""Which path computes what."""

from __future__ import annotations

import pytest
import torch

from backbones import CAFormer, PoolFormer, PoolFormerV2, ops
from backbones.ops import native

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)


@pytest.fixture(params=['cpu', 'native'])
def fused(request, monkeypatch):
    """What 'auto' takes on a CPU, without compiled loops and with them."""
    monkeypatch.setattr(native, 'AVAILABLE', request.param == 'native')
    return request.param


@pytest.mark.parametrize(
    ('path', 'device', 'taken'),
    [
        ('auto', 'cpu', 'fused'),
        ('auto', 'cuda', 'reference'),
        ('auto', 'meta', 'reference'),
        ('reference', 'cpu', 'reference'),
        ('cpu', 'cpu', 'cpu'),
    ],
)
def test_the_path_of_a_device(path, device, taken, fused):
    assert ops.resolve(path, device) == taken.replace('fused', fused)


def test_the_context_decides_what_is_left_open(fused):
    with ops.use('reference'):
        assert ops.resolve('auto', 'cpu') == 'reference'
        assert ops.resolve('cpu', 'cpu') == 'cpu'
    assert ops.resolve('auto', 'cpu') == fused


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match='auto, reference, cpu, native, triton'):
        PoolFormer(TINY, ops='fast')
    with pytest.raises(ValueError, match='recompute'):
        PoolFormer(TINY, recompute='all')


@pytest.mark.parametrize('path', ['cpu', 'native'])
def test_a_path_for_cpus_is_refused_elsewhere(path):
    with pytest.raises(ValueError, match=f"ops='{path}' is for a CPU"):
        ops.resolve(path, 'cuda')


def test_loops_are_refused_where_they_are_not_compiled(monkeypatch):
    monkeypatch.setattr(native, 'AVAILABLE', False)
    with pytest.raises(ValueError, match='build_ops'):
        PoolFormer(TINY, ops='native')


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr('backbones.ops.paths.has_triton', lambda: False)
    with pytest.raises(ValueError, match='pip install triton'):
        PoolFormer(TINY, ops='triton')


@pytest.mark.parametrize(
    ('model', 'paths'),
    [
        (lambda: PoolFormer(TINY), ('fused', 'fused')),
        (lambda: PoolFormer(TINY, ops='cpu'), ('cpu', 'cpu')),
        (lambda: PoolFormer(TINY, ops='reference'), ('reference', 'reference')),
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
def test_what_is_not_covered_takes_the_modules(model, paths, fused):
    expected = tuple(path.replace('fused', fused) for path in paths)
    assert model().stages[0][0].paths('cpu') == expected


@pytest.mark.parametrize('options', [dict(), dict(recompute='mlp'), dict(with_cp=True)], ids=str)
def test_the_paths_agree_in_a_whole_model(options):
    fused = PoolFormer(TINY, drop_path_rate=0.3, **options).double()
    plain = PoolFormer(TINY, drop_path_rate=0.3, ops='reference').double()
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
