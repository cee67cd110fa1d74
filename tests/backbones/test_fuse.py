"""Folding for inference changes nothing but the rounding."""

from __future__ import annotations

import copy

import pytest
import torch

from backbones import CAFormer, ConvFormer, MetaFormer, PoolFormer, PoolFormerV2
from backbones.blocks import Scale

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)


def _randomise(model):
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.double().eval()


@pytest.mark.parametrize(
    'build',
    {
        'poolformer': lambda: PoolFormer(TINY),
        'layer norm': lambda: PoolFormer(TINY, norm='ChannelLayerNorm'),
        'batch norm': lambda: PoolFormer(TINY, norm='BatchNorm'),
        'no norm': lambda: PoolFormer(TINY, norm='NoNorm'),
        'identity': lambda: PoolFormer(TINY, token_mixers='IdentityMixing'),
        'depthwise': lambda: PoolFormer(TINY, token_mixers='DepthwiseConv'),
        'no mlp': lambda: PoolFormer(TINY, mlp_ratio=0),
        'no residual': lambda: PoolFormer(TINY, residual=False),
        'poolformerv2': lambda: PoolFormerV2('s12'),
        'convformer': lambda: ConvFormer('s18'),
        'caformer': lambda: CAFormer('s18'),
        'hybrid': lambda: MetaFormer('metaformer_ppaa_s12_224'),
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize('backend', ['auto', 'reference'])
def test_folding_is_exact(build, backend):
    model = _randomise(build[1]())
    model.set_backend(backend)
    folded = copy.deepcopy(model).fuse()
    x = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        for expected, found in zip(model(x), folded(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_folded_poolformer_has_no_scales_and_cannot_be_trained():
    model = PoolFormer(TINY)
    assert model.fuse() is model
    assert not any(isinstance(module, Scale) for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_low_precision_weights_are_what_autocast_would_make_of_them():
    model = _randomise(PoolFormer(TINY)).float()
    folded = copy.deepcopy(model).fuse()
    converted = copy.deepcopy(model).fuse(torch.bfloat16)
    assert converted.stages[0][0].mlp.fc1.weight.dtype == torch.bfloat16
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        for expected, found in zip(folded(x), converted(x), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(('init', 'kept'), [(1e-6, True), (1e-5, True), (1e-2, False)])
def test_layer_scales_that_float16_can_not_hold_in_a_weight_are_kept(init, kept):
    """Weights of 0.02 times 1e-6 would be nearly all zero in it."""
    model = PoolFormer(dict(TINY, layer_scale_init=init)).eval()
    scales = (model.fuse().stages[0][0].layer_scale1, model.stages[0][0].layer_scale2)
    assert [isinstance(scale, Scale) for scale in scales] == [False, kept]
    weight = model.stages[0][0].mlp.fc2.weight
    assert (weight.half().float() - weight).norm() <= 1e-3 * weight.norm()
