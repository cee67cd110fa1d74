"""The block against the paper's equations, written out anew."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from backbones.metaformer import build_block
from backbones.norms import ModifiedLayerNorm
from backbones.presets import Arch
from backbones.token_mixers import Pooling


def _block(dim, **changes):
    arch = Arch(depths=(1, 1, 1, 1), dims=(dim,) * 4, **changes)
    return build_block(arch, stage=2)


def _normalised(x, norm):
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    variance = x.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
    scale, shift = (p.view(1, -1, 1, 1) for p in (norm.weight, norm.bias))
    return (x - mean) / torch.sqrt(variance + 1e-5) * scale + shift


def _pooled(x, size):
    """The average over the window's pixels that exist, by sums of a padded map."""
    kernel = torch.ones(x.shape[1], 1, size, size, dtype=x.dtype)
    total = F.conv2d(x, kernel, padding=size // 2, groups=x.shape[1])
    count = F.conv2d(torch.ones_like(x), kernel, padding=size // 2, groups=x.shape[1])
    return total / count


@given(
    size=st.tuples(st.integers(1, 3), st.integers(2, 6), st.integers(1, 9), st.integers(1, 9)),
    pool_size=st.sampled_from([3, 5, 7]),
)
@settings(max_examples=30)
def test_block_follows_the_paper(size, pool_size):
    torch.manual_seed(sum(size))
    dim = size[1]
    mixer = dict(type='Pooling', pool_size=pool_size)
    block = _block(dim, token_mixers=mixer, layer_scale_init=0.3).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(size, dtype=torch.float64)

    normalised = _normalised(x, block.norm1)
    mixed = _pooled(normalised, pool_size) - normalised
    y = x + block.layer_scale1.scale.view(1, -1, 1, 1) * mixed
    hidden = torch.einsum(
        'oc,bchw->bohw', block.mlp.fc1.weight.flatten(1), _normalised(y, block.norm2)
    )
    hidden = F.gelu(hidden + block.mlp.fc1.bias.view(1, -1, 1, 1))
    out = torch.einsum('oc,bchw->bohw', block.mlp.fc2.weight.flatten(1), hidden)
    out = out + block.mlp.fc2.bias.view(1, -1, 1, 1)
    expected = y + block.layer_scale2.scale.view(1, -1, 1, 1) * out

    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)


@given(value=st.floats(-1e3, 1e3), size=st.integers(1, 12), pool_size=st.sampled_from([1, 3, 9]))
@settings(max_examples=30)
def test_pooling_maps_a_constant_to_zero(value, size, pool_size):
    x = torch.full((1, 2, size, size), value, dtype=torch.float64)
    torch.testing.assert_close(Pooling(2, pool_size)(x), torch.zeros_like(x), atol=1e-9, rtol=0)


def test_norm_treats_samples_apart():
    norm = ModifiedLayerNorm(4)
    x = torch.randn(3, 4, 5, 5) * torch.tensor([1.0, 10, 100]).view(3, 1, 1, 1)
    torch.testing.assert_close(norm(x), torch.cat([norm(x[i : i + 1]) for i in range(3)]))


def test_mlp_starts_as_published():
    block = _block(256)
    for conv in (block.mlp.fc1, block.mlp.fc2):
        assert abs(conv.weight.std().item() - 0.02) < 1e-3
        assert conv.bias.abs().max() == 0


def test_improved_block_scales_the_residuals():
    # arXiv 2210.13452, equation 7: the shortcut is scaled, not the branch; the MLP has no bias.
    block = _block(
        6,
        token_mixers='IdentityMixing',
        activation='StarReLU',
        mlp_bias=False,
        layer_scale_init=None,
        res_scale_init=(None, None, 1.0, 1.0),
    ).double()
    assert torch.equal(block.res_scale1.scale, torch.ones(6, dtype=torch.float64))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 6, 5, 3, dtype=torch.float64)

    y = block.res_scale1.scale.view(1, -1, 1, 1) * x + _normalised(x, block.norm1)
    hidden = torch.einsum(
        'oc,bchw->bohw', block.mlp.fc1.weight.flatten(1), _normalised(y, block.norm2)
    )
    hidden = block.mlp.act.scale * hidden.clamp(min=0) ** 2 + block.mlp.act.bias
    out = torch.einsum('oc,bchw->bohw', block.mlp.fc2.weight.flatten(1), hidden)
    expected = block.res_scale2.scale.view(1, -1, 1, 1) * y + out

    torch.testing.assert_close(block(x), expected, rtol=1e-9, atol=1e-9)
    assert block.mlp.fc1.bias is None
    assert block.mlp.fc2.bias is None


def test_block_without_residual_returns_its_branches_alone():
    block = _block(4, residual=False, layer_scale_init=2.0, token_mixers='IdentityMixing').double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = 2 * block.norm1(x)
    torch.testing.assert_close(block(x), 2 * block.mlp(block.norm2(y)))


def test_block_without_mlp_is_its_first_half():
    block = _block(4, mlp_ratio=0, layer_scale_init=0.5).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), x + 0.5 * block.token_mixer(block.norm1(x)))
    names = {name.split('.')[0] for name, _ in block.named_parameters()}
    assert names == {'norm1', 'layer_scale1'}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize('mixer', ['Pooling', 'IdentityMixing'])
def test_drop_path_multiplies_each_branch_of_each_sample(mixer, dtype):
    block = _block(4, token_mixers=mixer, layer_scale_init=1.0).to(dtype)
    block.backend = 'reference'
    x = torch.randn(3, 4, 5, 5, dtype=dtype)
    drops = torch.tensor([[0, 2, 1], [1, 0, 2]], dtype=torch.promote_types(dtype, torch.float32))
    middle = x + drops[0].view(3, 1, 1, 1).to(dtype) * block.token_mixer(block.norm1(x))
    expected = middle + drops[1].view(3, 1, 1, 1).to(dtype) * block.mlp(block.norm2(middle))
    found = block(x, drops)
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected)
