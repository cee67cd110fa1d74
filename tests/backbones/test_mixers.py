"""Mixers, norms and activations, each against its formula written out anew in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from backbones import ACTIVATIONS, NORMS, TOKEN_MIXERS
from backbones.metaformer import PositionEmbedding
from backbones.token_mixers import (
    Attention,
    DepthwiseConv,
    IdentityMixing,
    Pooling,
    RandomMixing,
    SeparableConv,
    SpatialMLP,
)

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))
quick = settings(max_examples=20)


def _random(module):
    """In float64, with every parameter away from its starting value."""
    module = module.double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def _noise(*size):
    return torch.randn(size, dtype=torch.float64)


def _assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def _depthwise(x, weight):
    """A depthwise convolution padded with zeros, as a sum of shifted maps."""
    side = weight.shape[-1]
    height, width = x.shape[2:]
    padded = F.pad(x, [side // 2] * 4)
    return sum(
        weight[:, 0, i, j].view(1, -1, 1, 1) * padded[:, :, i : i + height, j : j + width]
        for i in range(side)
        for j in range(side)
    )


@given(size=SIZES, pool_size=st.sampled_from([1, 3, 5, 9]))
@quick
def test_pooling_averages_the_pixels_that_exist(size, pool_size):
    torch.manual_seed(sum(size))
    x = _noise(*size)
    expected = torch.empty_like(x)
    reach = pool_size // 2
    for i in range(size[2]):
        for j in range(size[3]):
            window = x[:, :, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
            expected[:, :, i, j] = window.mean(dim=(2, 3)) - x[:, :, i, j]
    _assert_close(Pooling(size[1], pool_size)(x), expected)


def test_identity_mixes_nothing():
    x = _noise(2, 4, 5, 3)
    mixer = IdentityMixing(4)
    assert mixer(x) is x
    assert list(mixer.parameters()) == []


@given(heads=st.integers(1, 3), size=SIZES, bias=st.booleans())
@quick
def test_attention_is_softmax_of_scaled_products(heads, size, bias):
    torch.manual_seed(sum(size))
    batch, head_dim, height, width = size
    dim = heads * head_dim
    mixer = _random(Attention(dim, head_dim=head_dim, proj_bias=bias))
    x = _noise(batch, dim, height, width)

    tokens = x.reshape(batch, dim, -1)
    mixed = torch.empty_like(tokens)
    query, key, value = mixer.qkv.weight.reshape(3, heads, head_dim, dim)
    for h in range(heads):
        q, k, v = (torch.einsum('dc,bcn->bdn', w[h], tokens) for w in (query, key, value))
        scores = torch.einsum('bdn,bdm->bnm', q, k) / math.sqrt(head_dim)
        weights = scores.exp() / scores.exp().sum(dim=2, keepdim=True)
        mixed[:, h * head_dim : (h + 1) * head_dim] = torch.einsum('bnm,bdm->bdn', weights, v)
    expected = torch.einsum('oc,bcn->bon', mixer.proj.weight, mixed)
    if bias:
        expected = expected + mixer.proj.bias.view(1, -1, 1)

    _assert_close(mixer(x), expected.reshape(x.shape))
    assert mixer.qkv.bias is None
    assert (mixer.proj.bias is not None) is bias


def test_attention_splits_the_channels_into_heads_of_32():
    assert Attention(320).head_dim == 32
    with pytest.raises(ValueError, match='dim 48 is not a multiple of head_dim 32'):
        Attention(48)


def test_random_mixing_is_a_frozen_matrix_of_averages():
    mixer = RandomMixing(4, resolution=(3, 5)).double()
    x = _noise(2, 4, 3, 5)
    expected = torch.einsum('nm,bcm->bcn', mixer.matrix, x.reshape(2, 4, 15)).reshape(x.shape)
    _assert_close(mixer(x), expected)
    assert not mixer.matrix.requires_grad
    assert 'matrix' in mixer.state_dict()
    rows = mixer.matrix.sum(dim=1)
    torch.testing.assert_close(rows, torch.ones_like(rows), rtol=1e-6, atol=1e-6)
    # The softmax of numbers in [0, 1) lets no entry of a row be e times another.
    ratios = mixer.matrix.amax(dim=1) / mixer.matrix.amin(dim=1)
    assert 1 < ratios.min() <= ratios.max() < math.e


def test_spatial_mlp_is_a_learned_matrix_over_tokens():
    mixer = _random(SpatialMLP(4, resolution=(3, 5)))
    x = _noise(2, 4, 3, 5)
    expected = torch.einsum('nm,bcm->bcn', mixer.fc.weight, x.reshape(2, 4, 15)).reshape(x.shape)
    _assert_close(mixer(x), expected)
    assert [(n, p.requires_grad) for n, p in mixer.named_parameters()] == [('fc.weight', True)]


@pytest.mark.parametrize('kind', [RandomMixing, SpatialMLP])
def test_fixed_tokens_resize_only_when_told(kind):
    x = _noise(1, 4, 6, 7)
    with pytest.raises(ValueError, match=r'built for \(3, 5\) tokens, got \(6, 7\)'):
        kind(4, resolution=(3, 5)).double()(x)
    mixer = kind(4, resolution=(3, 5), interpolate=True).double()
    inside = F.interpolate(x, (3, 5), mode='bilinear')
    _assert_close(mixer(x), F.interpolate(mixer(inside), (6, 7), mode='bilinear'))


@given(size=SIZES, kernel_size=st.sampled_from([1, 3, 7]))
@quick
def test_depthwise_conv(size, kernel_size):
    torch.manual_seed(sum(size))
    mixer = _random(DepthwiseConv(size[1], kernel_size))
    x = _noise(*size)
    expected = _depthwise(x, mixer.conv.weight) + mixer.conv.bias.view(1, -1, 1, 1)
    _assert_close(mixer(x), expected)


@given(size=SIZES, expansion=st.sampled_from([1, 2, 4]))
@quick
def test_separable_conv_expands_mixes_and_projects(size, expansion):
    torch.manual_seed(sum(size))
    mixer = _random(SeparableConv(size[1], expansion))
    x = _noise(*size)
    hidden = torch.einsum('oc,bchw->bohw', mixer.expand.weight[:, :, 0, 0], x)
    hidden = mixer.act.scale * hidden.clamp(min=0) ** 2 + mixer.act.bias
    hidden = _depthwise(hidden, mixer.depthwise.weight)
    _assert_close(mixer(x), torch.einsum('oc,bchw->bohw', mixer.project.weight[:, :, 0, 0], hidden))
    assert hidden.shape[1] == expansion * size[1]
    assert mixer.depthwise.kernel_size == (7, 7)
    assert [n for n, _ in mixer.named_parameters() if n.endswith('.bias')] == ['act.bias']


@pytest.mark.parametrize(
    ('kind', 'argument'),
    [(Pooling, 'pool_size'), (DepthwiseConv, 'kernel_size'), (SeparableConv, 'kernel_size')],
)
@pytest.mark.parametrize('value', [0, 2, -3])
def test_windows_are_odd(kind, argument, value):
    with pytest.raises(ValueError, match=f'{argument} must be a positive odd integer, got {value}'):
        kind(4, **{argument: value})


@pytest.mark.parametrize('name', sorted(TOKEN_MIXERS.module_dict))
def test_every_mixer_keeps_the_shape_and_accepts_any_memory_layout(name):
    options = {'resolution': (6, 5)} if name in ('RandomMixing', 'SpatialMLP') else {}
    mixer = TOKEN_MIXERS.get(name)(32, **options)
    x = torch.randn(2, 32, 6, 5)
    expected = mixer(x)
    assert expected.shape == x.shape
    strided = torch.stack([x, -x], dim=-1)[..., 0]
    for layout in (x.contiguous(memory_format=torch.channels_last), strided):
        torch.testing.assert_close(mixer(layout), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('eps', [1e-5, 1e-2])
@pytest.mark.parametrize(
    ('name', 'dims', 'shape'),
    [('ModifiedLayerNorm', (1, 2, 3), (2, 6, 4, 3)), ('ChannelLayerNorm', 1, (2, 6, 4, 3))],
)
def test_layer_norms(name, dims, shape, bias, eps):
    norm = _random(NORMS.get(name)(6, eps=eps, bias=bias))
    x = 3 + 0.1 * _noise(*shape)
    mean = x.mean(dim=dims, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=dims, keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + eps) * norm.weight.view(1, -1, 1, 1)
    if bias:
        expected = expected + norm.bias.view(1, -1, 1, 1)
    _assert_close(norm(x), expected)
    assert sorted(norm.state_dict()) == (['bias', 'weight'] if bias else ['weight'])


@pytest.mark.parametrize('name', ['ModifiedLayerNorm', 'ChannelLayerNorm'])
def test_layer_norms_start_as_plain_normalisation(name):
    norm = NORMS.get(name)(6)
    assert torch.equal(norm.weight, torch.ones(6))
    assert torch.equal(norm.bias, torch.zeros(6))
    assert norm.eps == 1e-5


def test_batch_norm_normalises_over_the_batch():
    norm = _random(NORMS.get('BatchNorm')(3))
    x = _noise(4, 3, 5, 5)
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=(0, 2, 3), keepdim=True)
    expected = (x - mean) / torch.sqrt(variance + 1e-5) * norm.weight.view(1, -1, 1, 1)
    _assert_close(norm(x), expected + norm.bias.view(1, -1, 1, 1))


def test_no_norm_changes_nothing():
    x = _noise(2, 3, 4, 4)
    assert NORMS.get('NoNorm')(3)(x) is x


@pytest.mark.parametrize(
    ('name', 'formula'),
    [
        ('GELU', lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2),
        ('ReLU', lambda x: x.clamp(min=0)),
        ('SiLU', lambda x: x / (1 + torch.exp(-x))),
        ('SquaredReLU', lambda x: x.clamp(min=0) ** 2),
        ('StarReLU', lambda x: x.clamp(min=0) ** 2),  # as it starts: scale 1, bias 0
    ],
)
def test_activations(name, formula):
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    _assert_close(ACTIVATIONS.get(name)().double()(x), formula(x))


def test_star_relu_learns_one_scale_and_one_bias():
    act = _random(ACTIVATIONS.get('StarReLU')())
    x = _noise(2, 3, 4, 4)
    _assert_close(act(x), act.scale.item() * x.clamp(min=0) ** 2 + act.bias.item())
    assert {n: p.numel() for n, p in act.named_parameters()} == {'scale': 1, 'bias': 1}


def test_position_embedding_is_added_and_resized():
    embedding = _random(PositionEmbedding(3, (4, 5)))
    x = _noise(2, 3, 4, 5)
    _assert_close(embedding(x), x + embedding.embedding)
    larger = torch.zeros(1, 3, 9, 7, dtype=torch.float64)
    resized = F.interpolate(embedding.embedding, (9, 7), mode='bicubic')
    _assert_close(embedding(larger), resized)
    assert torch.equal(PositionEmbedding(3, (4, 5)).embedding, torch.zeros(1, 3, 4, 5))
