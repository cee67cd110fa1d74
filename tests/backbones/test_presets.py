"""Every published architecture: its size, its cost, and what a backbone must be able to do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from backbones import MetaFormer
from backbones.ops import use_backend
from backbones.presets import FAMILIES, PRESETS
from poolformer_dense.measure.analysis import count_macs

# Millions of parameters and GMACs at 224x224 as published, with the ImageNet classifier.
_BASIC = {'s12': 11.9, 's24': 21.3, 's36': 30.8, 'm36': 56.1, 'm48': 73.3}
_BASIC_GMACS = dict(zip(_BASIC, (1.8, 3.4, 5.0, 8.8, 11.5), strict=True))
_FROZEN = dict(zip(_BASIC, (0.2, 0.5, 0.7, 0.7, 0.9), strict=True))
_RAND_GMACS = dict(zip(_BASIC, (1.9, 3.5, 5.2, 9.0, 11.9), strict=True))
PUBLISHED = {
    # arXiv 2111.11418, Table 1: the exact numbers are the released network's.
    'poolformer_s12': (11.915176, 1.812),
    'poolformer_s24': (21.388968, 3.392),
    'poolformer_s36': (30.862760, 4.972),
    'poolformer_m36': (56.172520, 8.758),
    'poolformer_m48': (73.473448, 11.533),
    # arXiv 2210.13452, Tables 4 and 5.
    **{f'identityformer_{s}': (_BASIC[s], _BASIC_GMACS[s]) for s in _BASIC},
    **{f'poolformerv2_{s}': (_BASIC[s], _BASIC_GMACS[s]) for s in _BASIC},
    **{f'randformer_{s}': (_BASIC[s] + _FROZEN[s], _RAND_GMACS[s]) for s in _BASIC},
    'convformer_s18': (27, 3.9),
    'convformer_s36': (40, 7.6),
    'convformer_m36': (57, 12.8),
    'convformer_b36': (100, 22.6),
    'caformer_s18': (26, 4.1),
    'caformer_s36': (39, 8.0),
    'caformer_m36': (56, 13.2),
    'caformer_b36': (99, 23.2),
    # arXiv 2111.11418, Table 5. The identity is PoolFormer-S12 without its parameterless pooling.
    'metaformer_id_s12': (11.9, 1.812),
    'metaformer_ppaa_s12_224': (16.5, 2.5),
}
# For these no published size is at hand; they are S12 with other mixers, counted by hand: two
# blocks of attention with 4 C^2 weights and C biases each, and an embedding; spatial fc with N^2.
_S12_PARAMETERS, _S12_GMACS = PUBLISHED['poolformer_s12']
_ATTENTION_STAGE_4 = 2 * (4 * 512**2 + 512) + 7 * 7 * 512
_FC_STAGE_4, _FC_STAGE_3 = 2 * 49**2, 6 * 196**2
PUBLISHED |= {
    'metaformer_pppa_s12_224': (
        _S12_PARAMETERS + _ATTENTION_STAGE_4 / 1e6,
        _S12_GMACS + 2 * (49 * 4 * 512**2 + 2 * 49**2 * 512) / 1e9,
    ),
    'metaformer_pppf_s12_224': (
        _S12_PARAMETERS + _FC_STAGE_4 / 1e6,
        _S12_GMACS + _FC_STAGE_4 * 512 / 1e9,
    ),
    'metaformer_ppff_s12_224': (
        _S12_PARAMETERS + (_FC_STAGE_4 + _FC_STAGE_3) / 1e6,
        _S12_GMACS + (_FC_STAGE_4 * 512 + _FC_STAGE_3 * 320) / 1e9,
    ),
}
EXACT_BACKBONES = {
    'poolformer_s12': 11_403_200,
    'poolformer_s24': 20_876_992,
    'poolformer_s36': 30_350_784,
    'poolformer_m36': 55_404_864,
    'poolformer_m48': 72_705_792,
}
SMALLEST = [f'{family}_{next(iter(sizes))}' for family, sizes in FAMILIES.items()]
HYBRIDS = ['metaformer_ppaa_s12_224', 'metaformer_ppff_s12_224']
ONE_A_FAMILY = [*SMALLEST, *HYBRIDS]
_FAST = [pytest.param(name) for name in ONE_A_FAMILY]
_SLOW = [pytest.param(n, marks=pytest.mark.slow) for n in PRESETS if n not in ONE_A_FAMILY]
ALL = [*_FAST, *_SLOW]
SLOW_ONE_A_FAMILY = [pytest.param(n, marks=pytest.mark.slow) for n in ONE_A_FAMILY]


def _for_any_size(name):
    """The preset; mixers of a fixed number of tokens resize other maps."""
    mixers = [
        dict(mixer, interpolate=True)
        if isinstance(mixer, dict) and 'resolution' in mixer
        else mixer
        for mixer in PRESETS[name].token_mixers
    ]
    return MetaFormer(name, token_mixers=mixers)


def _sides(side):
    """Sides of the four outputs: 7x7 of stride 4 padded by 2, then 3x3 of stride 2 padded by 1."""
    first = (side + 4 - 7) // 4 + 1
    return [(first - 1) // 2**i + 1 for i in range(4)]


def _on_meta(name):
    with torch.device('meta'):
        return MetaFormer(name)


def _shallow(name, **options):
    """One block a stage: what tracing sees of a family, at a fraction of the time."""
    return MetaFormer(replace(PRESETS[name], depths=(1, 1, 1, 1)), **options)


def _numel(module):
    return sum(p.numel() for p in module.parameters())


def _classifier_parameters(name, dim):
    """The ImageNet head of each paper: what published counts have and a backbone has not."""
    norm = 2 * dim
    if name.startswith(('convformer', 'caformer')):
        hidden = 4 * dim  # fc1, squared ReLU, layer norm, fc2
        return norm + (dim * hidden + hidden) + 2 * hidden + (hidden * 1000 + 1000)
    return norm + dim * 1000 + 1000


def test_every_preset_has_its_published_numbers():
    assert set(PUBLISHED) == set(PRESETS)


@pytest.mark.parametrize(('name', 'parameters'), EXACT_BACKBONES.items())
def test_exact_parameters_of_poolformer(name, parameters):
    model = _on_meta(name)
    assert _numel(model) == parameters
    classifier = parameters - _numel(model.output_norms)
    classifier += _classifier_parameters(name, PRESETS[name].dims[-1])
    assert classifier == round(PUBLISHED[name][0] * 1e6)


@pytest.mark.parametrize('name', PRESETS)
def test_parameters(name):
    model = _on_meta(name)
    classifier = _classifier_parameters(name, PRESETS[name].dims[-1])
    total = _numel(model) - _numel(model.output_norms) + classifier
    assert total / 1e6 == pytest.approx(PUBLISHED[name][0], rel=0.02)


@pytest.mark.parametrize('size', _FROZEN)
def test_frozen_parameters_of_randformer(size):
    frozen = [p for p in _on_meta(f'randformer_{size}').parameters() if not p.requires_grad]
    # Published with one digit, of which 2% would be less than the rounding.
    assert sum(p.numel() for p in frozen) / 1e6 == pytest.approx(_FROZEN[size], abs=0.05)


@pytest.mark.parametrize('name', PRESETS)
def test_gmacs(name):
    gmacs = sum(count_macs(_on_meta(name), (224, 224))) / 1e9
    assert gmacs == pytest.approx(PUBLISHED[name][1], rel=0.02)


@pytest.mark.parametrize('name', ALL)
@torch.no_grad()
def test_odd_sizes(name):
    outputs = _for_any_size(name).eval()(torch.randn(1, 3, 127, 201))
    assert [tuple(o.shape) for o in outputs] == [
        (1, dim, *size)
        for dim, size in zip(
            PRESETS[name].dims, zip(_sides(127), _sides(201), strict=True), strict=True
        )
    ]
    assert all(o.isfinite().all() for o in outputs)


@pytest.mark.parametrize('name', ONE_A_FAMILY)
def test_strides(name):
    with torch.device('meta'):
        outputs = MetaFormer(name)(torch.randn(2, 3, 224, 224))
    assert [224 / o.shape[2] for o in outputs] == [4, 8, 16, 32]
    assert [224 / o.shape[3] for o in outputs] == [4, 8, 16, 32]


@pytest.mark.parametrize('name', ['randformer_s12', 'metaformer_ppff_s12_224'])
def test_fixed_tokens_refuse_other_sizes(name):
    with pytest.raises(ValueError, match=r'built for \(14, 14\) tokens.*interpolate=True'):
        _on_meta(name)(torch.randn(1, 3, 256, 256, device='meta'))


@pytest.mark.parametrize('name', ALL)
def test_backward_reaches_every_trainable_parameter(name):
    model = _for_any_size(name).double()
    for parameter_name, parameter in model.named_parameters():
        if 'layer_scale' in parameter_name:  # 1e-5 hides a gradient in the rounding
            nn.init.constant_(parameter, 0.1)
    outputs = model(torch.randn(1, 3, 64, 64, dtype=torch.float64))
    sum((o * torch.randn_like(o)).sum() for o in outputs).backward()

    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trainable.items() if p.grad is None] == []
    dead = {n for n, p in trainable.items() if p.grad.abs().max() < 1e-10}
    # Pooling minus its input cancels a constant, so the bias of the norm before it is dead.
    pooling = [f'stages.{i}.' for i, m in enumerate(model.arch.token_mixers) if m == 'Pooling']
    first_biases = {n for n in trainable if n.endswith('norm1.bias')}
    assert dead == {n for n in first_biases if n.startswith(tuple(pooling))}
    frozen = {n.rsplit('.', 1)[1] for n in dict(model.named_parameters()) if n not in trainable}
    assert frozen == ({'matrix'} if name.startswith('randformer') else set())


def _assert_same(outputs, expected, **tolerance):
    for output, other in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, other, **tolerance)


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize('name', ONE_A_FAMILY)
@pytest.mark.usefixtures('_fresh_dynamo')
def test_compiles_without_a_graph_break(name):
    model = _shallow(name, drop_path_rate=0.5)
    image = torch.randn(2, 3, 224, 224)
    torch.manual_seed(1)
    expected = model(image)
    torch.manual_seed(1)
    _assert_same(torch.compile(model, fullgraph=True, backend='eager')(image), expected)


@pytest.mark.parametrize('name', ONE_A_FAMILY)
def test_exports_with_an_open_batch(name):
    model = _shallow(name).eval()
    image = torch.randn(3, 3, 224, 224)
    shapes = ({0: torch.export.Dim('batch')},)
    exported = torch.export.export(model, (image[:2],), dynamic_shapes=shapes)
    with use_backend('reference'):
        _assert_same(exported.module()(image), model(image))


@pytest.mark.slow
@pytest.mark.parametrize('name', PRESETS)
@pytest.mark.usefixtures('_fresh_dynamo')
@torch.no_grad()
def test_full_size_compiles_and_exports(name):
    model = MetaFormer(name).eval()
    image = torch.randn(1, 3, 224, 224)
    expected = model(image)
    _assert_same(torch.compile(model, fullgraph=True, backend='eager')(image), expected)
    # An export takes the reference, and lays maps out otherwise: both round differently.
    exported = torch.export.export(model, (image,)).module()
    _assert_same(exported(image), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('name', SLOW_ONE_A_FAMILY)
@pytest.mark.usefixtures('_fresh_dynamo')
def test_inductor_trains(name):
    torch.manual_seed(0)
    model = _shallow(name)
    image = torch.randn(2, 3, 224, 224)
    gradients = []
    for function in (model, torch.compile(model, fullgraph=True)):
        model.zero_grad()
        outputs = function(image)
        sum(o.square().mean() for o in outputs).backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
    _assert_same(outputs, model(image), rtol=1e-3, atol=1e-3)
    for ours, compiled in zip(*gradients, strict=True):
        assert (ours - compiled).norm() <= 1e-2 * ours.norm() + 1e-4


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(token_mixers='Poling'), r"unknown token mixer 'Poling'; choose from Attention, .*Po"),
        (dict(token_mixers=['Pooling'] * 3 + ['No']), r"unknown token mixer 'No'; choose from"),
        (dict(norm='LayerNorm'), r"unknown norm 'LayerNorm'; choose from .*ChannelLayerNorm"),
        (dict(norm=dict(eps=1e-6)), r'unknown norm None; choose from .*ModifiedLayerNorm'),
        (dict(activation='Gelu'), r"unknown activation 'Gelu'; choose from GELU, .*StarReLU"),
        (dict(arch='poolformer_s13'), r"unknown arch 'poolformer_s13'; choose from poolformer_s12"),
    ],
)
def test_unknown_names_list_the_choices(arguments, message):
    with pytest.raises(ValueError, match=message), torch.device('meta'):
        MetaFormer(**(dict(arch='poolformer_s12') | arguments))
