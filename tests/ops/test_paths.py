"""Which path computes what."""

from __future__ import annotations

import pytest
import torch

from backbones import CAFormer, PoolFormer, PoolFormerV2, ops

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)


@pytest.mark.parametrize(
    ('path', 'device', 'taken'),
    [
        ('auto', 'cpu', 'cpu'),
        ('auto', 'cuda', 'reference'),
        ('auto', 'meta', 'reference'),
        ('reference', 'cpu', 'reference'),
        ('cpu', 'cpu', 'cpu'),
    ],
)
def test_the_path_of_a_device(path, device, taken):
    assert ops.resolve(path, device) == taken


def test_the_context_decides_what_is_left_open():
    with ops.use('reference'):
        assert ops.resolve('auto', 'cpu') == 'reference'
        assert ops.resolve('cpu', 'cpu') == 'cpu'
    assert ops.resolve('auto', 'cpu') == 'cpu'


def test_an_unknown_path_is_refused():
    with pytest.raises(ValueError, match='auto, reference, cpu, triton'):
        PoolFormer(TINY, ops='fast')
    with pytest.raises(ValueError, match='recompute'):
        PoolFormer(TINY, recompute='all')


def test_the_cpu_path_is_refused_elsewhere():
    with pytest.raises(ValueError, match="ops='cpu' is for a CPU"):
        ops.resolve('cpu', 'cuda')


def test_triton_is_refused_where_it_is_not_installed(monkeypatch):
    monkeypatch.setattr('backbones.ops.paths.has_triton', lambda: False)
    with pytest.raises(ValueError, match='pip install triton'):
        PoolFormer(TINY, ops='triton')


@pytest.mark.parametrize(
    ('model', 'paths'),
    [
        (lambda: PoolFormer(TINY), ('cpu', 'cpu')),
        (lambda: PoolFormer(TINY, ops='reference'), ('reference', 'reference')),
        (lambda: PoolFormer(TINY, token_mixers='IdentityMixing'), ('reference', 'cpu')),
        (
            lambda: PoolFormer(TINY, token_mixers=dict(type='Pooling', pool_size=5)),
            ('reference', 'cpu'),
        ),
        (lambda: PoolFormer(TINY, norm='BatchNorm'), ('reference', 'reference')),
        (lambda: PoolFormer(TINY, activation='ReLU'), ('cpu', 'reference')),
        (lambda: PoolFormer(TINY, residual=False), ('reference', 'reference')),
        (lambda: PoolFormerV2('s12'), ('cpu', 'reference')),
        (lambda: CAFormer('s18'), ('reference', 'reference')),
    ],
)
def test_what_is_not_covered_takes_the_modules(model, paths):
    assert model().stages[0][0].paths('cpu') == paths


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
