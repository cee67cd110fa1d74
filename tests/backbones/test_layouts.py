"""Names and shapes of every layout: samples written by hand, round trips, detection."""

from __future__ import annotations

import re

import pytest
import torch

from backbones import MetaFormer
from backbones.checkpoints import (
    LAYOUTS,
    CheckpointError,
    detect_layout,
    from_layout,
    to_layout,
)
from backbones.presets import PRESETS

# Our name, its shape and their name (with its shape where it differs), typed from the models.
SAMPLES = {
    'official': """
    downsamples.0.conv.weight 64,3,7,7 = patch_embed.proj.weight
    downsamples.1.conv.bias 128 = network.1.proj.bias
    downsamples.3.conv.weight 8,4,3,3 = network.5.proj.weight
    stages.0.1.norm1.weight 64 = network.0.1.norm1.weight
    stages.1.0.norm2.bias 128 = network.2.0.norm2.bias
    stages.2.11.mlp.fc1.weight 8,2,1,1 = network.4.11.mlp.fc1.weight
    stages.2.5.mlp.fc2.bias 320 = network.4.5.mlp.fc2.bias
    stages.3.0.layer_scale1.scale 512 = network.6.0.layer_scale_1
    stages.3.1.layer_scale2.scale 512 = network.6.1.layer_scale_2
    stages.3.1.token_mixer.fc.weight 49,49 = network.6.1.token_mixer.fc.weight
    output_norms.0.weight 64 = norm0.weight
    output_norms.3.bias 512 = norm6.bias
    """,
    # The embedding before stage 3 takes place 4; what follows moves by one.
    'official with an embedding': """
    downsamples.2.conv.weight 6,5,3,3 = network.3.proj.weight
    position_embeddings.2.embedding 1,320,14,14 = network.4.pos_embed
    stages.1.0.norm1.bias 128 = network.2.0.norm1.bias
    stages.2.0.token_mixer.qkv.weight 960,320 = network.5.0.token_mixer.qkv.weight
    stages.2.0.token_mixer.proj.bias 320 = network.5.0.token_mixer.proj.bias
    downsamples.3.conv.bias 512 = network.6.proj.bias
    stages.3.1.mlp.fc2.weight 2,8,1,1 = network.7.1.mlp.fc2.weight
    """,
    'mmpretrain': """
    downsamples.0.conv.bias 64 = backbone.patch_embed.proj.bias
    downsamples.2.conv.bias 320 = backbone.network.3.proj.bias
    stages.2.0.mlp.fc1.bias 1280 = backbone.network.4.0.mlp.fc1.bias
    output_norms.3.weight 512 = backbone.norm6.weight
    """,
    'baselines': """
    downsamples.0.conv.weight 64,3,7,7 = downsample_layers.0.conv.weight
    downsamples.0.norm.weight 64 = downsample_layers.0.post_norm.weight
    downsamples.2.norm.weight 128 = downsample_layers.2.pre_norm.weight
    downsamples.3.conv.bias 512 = downsample_layers.3.conv.bias
    stages.0.0.norm1.weight 64 = stages.0.0.norm1.weight
    stages.0.0.norm2.weight 64 = stages.0.0.norm2.weight
    stages.0.2.token_mixer.expand.weight 8,4,1,1 = stages.0.2.token_mixer.pwconv1.weight 8,4
    stages.0.2.token_mixer.act.scale 1 = stages.0.2.token_mixer.act1.scale
    stages.0.2.token_mixer.act.bias 1 = stages.0.2.token_mixer.act1.bias
    stages.0.2.token_mixer.depthwise.weight 8,1,7,7 = stages.0.2.token_mixer.dwconv.weight
    stages.0.2.token_mixer.project.weight 4,8,1,1 = stages.0.2.token_mixer.pwconv2.weight 4,8
    stages.1.0.mlp.fc1.weight 8,2,1,1 = stages.1.0.mlp.fc1.weight 8,2
    stages.1.0.mlp.fc2.weight 2,8,1,1 = stages.1.0.mlp.fc2.weight 2,8
    stages.1.0.mlp.act.scale 1 = stages.1.0.mlp.act.scale
    stages.1.0.mlp.act.bias 1 = stages.1.0.mlp.act.bias
    stages.1.0.layer_scale1.scale 128 = stages.1.0.layer_scale1.scale
    stages.1.0.layer_scale2.scale 128 = stages.1.0.layer_scale2.scale
    stages.2.0.token_mixer.qkv.weight 960,320 = stages.2.0.token_mixer.qkv.weight
    stages.2.0.token_mixer.proj.weight 320,320 = stages.2.0.token_mixer.proj.weight
    stages.2.1.token_mixer.matrix 196,196 = stages.2.1.token_mixer.random_matrix
    stages.2.8.res_scale1.scale 320 = stages.2.8.res_scale1.scale
    stages.3.2.res_scale2.scale 512 = stages.3.2.res_scale2.scale
    """,
    'timm': """
    downsamples.0.conv.weight 64,3,7,7 = stem.conv.weight
    downsamples.0.norm.weight 64 = stem.norm.weight
    downsamples.1.norm.weight 64 = stages.1.downsample.norm.weight
    downsamples.3.conv.bias 512 = stages.3.downsample.conv.bias
    stages.0.0.norm1.bias 64 = stages.0.blocks.0.norm1.bias
    stages.0.0.norm2.weight 64 = stages.0.blocks.0.norm2.weight
    stages.0.1.layer_scale1.scale 64 = stages.0.blocks.1.layer_scale1.scale
    stages.0.1.layer_scale2.scale 64 = stages.0.blocks.1.layer_scale2.scale
    stages.1.0.mlp.fc1.weight 8,2,1,1 = stages.1.blocks.0.mlp.fc1.weight
    stages.1.0.mlp.act.scale 1 = stages.1.blocks.0.mlp.act.scale
    stages.1.0.mlp.act.bias 1 = stages.1.blocks.0.mlp.act.bias
    stages.1.0.token_mixer.expand.weight 8,4,1,1 = stages.1.blocks.0.token_mixer.pwconv1.weight
    stages.1.0.token_mixer.act.scale 1 = stages.1.blocks.0.token_mixer.act1.scale
    stages.1.0.token_mixer.act.bias 1 = stages.1.blocks.0.token_mixer.act1.bias
    stages.1.0.token_mixer.depthwise.weight 8,1,7,7 = stages.1.blocks.0.token_mixer.dwconv.weight
    stages.1.0.token_mixer.project.weight 4,8,1,1 = stages.1.blocks.0.token_mixer.pwconv2.weight
    stages.2.0.token_mixer.qkv.weight 960,320 = stages.2.blocks.0.token_mixer.qkv.weight
    stages.2.0.token_mixer.proj.weight 320,320 = stages.2.blocks.0.token_mixer.proj.weight
    stages.2.0.mlp.fc2.weight 2,8,1,1 = stages.2.blocks.0.mlp.fc2.weight 2,8
    stages.2.0.res_scale1.scale 320 = stages.2.blocks.0.res_scale1.scale
    stages.2.0.res_scale2.scale 320 = stages.2.blocks.0.res_scale2.scale
    """,
    'hf': """
    downsamples.0.conv.weight 64,3,7,7 = poolformer.encoder.patch_embeddings.0.projection.weight
    downsamples.2.conv.bias 320 = poolformer.encoder.patch_embeddings.2.projection.bias
    stages.2.5.norm1.weight 320 = poolformer.encoder.block.2.5.before_norm.weight
    stages.2.5.norm2.bias 320 = poolformer.encoder.block.2.5.after_norm.bias
    stages.0.0.mlp.fc1.weight 8,2,1,1 = poolformer.encoder.block.0.0.output.conv1.weight
    stages.0.0.mlp.fc2.bias 64 = poolformer.encoder.block.0.0.output.conv2.bias
    stages.3.1.layer_scale1.scale 512 = poolformer.encoder.block.3.1.layer_scale_1
    stages.3.1.layer_scale2.scale 512 = poolformer.encoder.block.3.1.layer_scale_2
    """,
    'ours': """
    downsamples.0.conv.weight 64,3,7,7 = downsamples.0.conv.weight
    position_embeddings.3.embedding 1,512,7,7 = position_embeddings.3.embedding
    stages.0.0.token_mixer.conv.bias 64 = stages.0.0.token_mixer.conv.bias
    stages.0.0.mlp.fc1.weight 8,2,1,1 = stages.0.0.mlp.fc1.weight
    output_norms.3.weight 512 = output_norms.3.weight
    """,
}

V1 = {'poolformer_s12', 'poolformer_s24', 'poolformer_s36', 'poolformer_m36', 'poolformer_m48'}
HYBRIDS = {f'metaformer_{m}_s12_224' for m in ('pppa', 'ppaa', 'pppf', 'ppff')}
RANDOM = {name for name in PRESETS if name.startswith('randformer')}
# The presets that each layout has names for.
EXPRESSED = {
    'ours': set(PRESETS),
    'official': V1 | HYBRIDS | {'metaformer_id_s12'},
    'mmpretrain': V1 | HYBRIDS | {'metaformer_id_s12'},
    'hf': V1 | {'metaformer_id_s12'},
    'timm': set(PRESETS) - HYBRIDS - RANDOM,
    'baselines': set(PRESETS) - HYBRIDS,
}
NO_OUTPUT_NORMS = {'hf', 'timm', 'baselines'}
# One architecture of each kind of name, small enough to hold real values.
V2 = dict(
    norm=dict(type='ChannelLayerNorm', bias=False),
    downsample_norm=dict(type='ChannelLayerNorm', bias=False),
    activation='StarReLU',
    mlp_bias=False,
    layer_scale_init=None,
    res_scale_init=(None, None, 1.0, 1.0),
)
SIZE = dict(depths=(1, 2, 1, 2), dims=(8, 16, 32, 64))
SMALL = {
    'poolformer': (SIZE, ['ours', 'official', 'mmpretrain', 'hf', 'timm', 'baselines']),
    'caformer': (
        SIZE | V2 | dict(token_mixers=['SeparableConv'] * 2 + ['Attention'] * 2),
        ['ours', 'timm', 'baselines'],
    ),
    'randformer': (
        SIZE | V2 | dict(token_mixers=dict(type='RandomMixing', resolution=(3, 3))),
        ['ours', 'baselines'],
    ),
    'ppaa': (
        SIZE
        | dict(
            token_mixers=['Pooling'] * 2 + [dict(type='Attention', proj_bias=True)] * 2,
            position_embeddings=(None, None, (14, 14), None),
        ),
        ['ours', 'official', 'mmpretrain'],
    ),
    'two embeddings': (
        SIZE | dict(position_embeddings=(None, (5, 5), (14, 14), None)),
        ['ours', 'official', 'mmpretrain'],
    ),
    'pppf': (
        SIZE | dict(token_mixers=['Pooling'] * 3 + [dict(type='SpatialMLP', resolution=(7, 7))]),
        ['ours', 'official', 'mmpretrain'],
    ),
    'batch norm': (SIZE | dict(norm='BatchNorm'), ['ours', 'official', 'timm']),
    'depthwise': (SIZE | dict(token_mixers='DepthwiseConv'), ['ours']),
}


def _meta(arch):
    with torch.device('meta'):
        return MetaFormer(arch).state_dict()


@pytest.fixture(scope='module')
def presets():
    """The state dict of every preset, without values."""
    return {name: _meta(name) for name in PRESETS}


def _sample(name):
    """Shapes by our names and shapes by theirs."""
    ours, theirs = {}, {}
    for line in SAMPLES[name].strip().splitlines():
        left, right = (side.split() for side in line.split('='))
        ours[left[0]] = tuple(map(int, left[1].split(',')))
        theirs[right[0]] = tuple(map(int, right[-1].split(','))) if right[1:] else ours[left[0]]
    return ours, theirs


def _random(arch):
    return {k: torch.randn(v.shape) for k, v in _meta(arch).items()}


def _same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('sample', SAMPLES)
def test_names_and_shapes_written_by_hand(sample):
    layout = sample.split()[0]
    shapes, expected = _sample(sample)
    ours = {name: torch.randn(shape) for name, shape in shapes.items()}
    theirs = to_layout(ours, layout)
    assert {k: tuple(v.shape) for k, v in theirs.items()} == expected
    assert _same(from_layout(theirs, layout), ours)
    assert _same(from_layout(theirs), ours)


@pytest.mark.parametrize('layout', LAYOUTS)
def test_a_sample_stands_for_every_row(layout):
    # A misspelt row would hide where only the round trip uses it: both directions have the error.
    # mmpretrain's table is the official one.
    samples = {'mmpretrain': ('mmpretrain', 'official')}.get(layout, (layout,))
    names = [key for name in SAMPLES if name.split()[0] in samples for key in _sample(name)[0]]
    unused = [ours for ours, _ in LAYOUTS[layout].rows if not _match_any(ours, names)]
    assert not unused


def _match_any(template, names):
    pattern = re.sub(r'\\\{\w+\\\}', '.+', re.escape(template))
    return any(re.fullmatch(pattern, name) for name in names)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_goes_there_and_back(name, layout, presets):
    ours = presets[name]
    if name not in EXPRESSED[layout]:
        with pytest.raises(
            CheckpointError, match=f'the {layout} layout has no name for .* tensors'
        ):
            to_layout(ours, layout)
        return
    theirs = to_layout(ours, layout)
    assert detect_layout(theirs) == layout
    back = from_layout(theirs)
    lost = {k for k in ours if k.startswith('output_norms')} if layout in NO_OUTPUT_NORMS else set()
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in ours.items() if k not in lost
    }


@pytest.mark.parametrize('kind', SMALL)
def test_values_survive_there_and_back(kind):
    arch, layouts = SMALL[kind]
    ours = _random(arch)
    for layout in layouts:
        kept = {
            k: v
            for k, v in ours.items()
            if layout not in NO_OUTPUT_NORMS or not k.startswith('output_norms')
        }
        assert _same(from_layout(to_layout(ours, layout)), kept), layout


def test_attention_stages_are_linear_in_timm_and_all_stages_in_the_baselines():
    ours = _random(SMALL['caformer'][0])
    timm = {k: v.ndim for k, v in to_layout(ours, 'timm').items() if 'fc1' in k}
    assert [timm[f'stages.{s}.blocks.0.mlp.fc1.weight'] for s in range(4)] == [4, 4, 2, 2]
    baselines = {k: v.ndim for k, v in to_layout(ours, 'baselines').items()}
    assert [baselines[f'stages.{s}.0.mlp.fc2.weight'] for s in range(4)] == [2, 2, 2, 2]
    assert baselines['stages.0.0.token_mixer.pwconv1.weight'] == 2
    assert baselines['stages.0.0.token_mixer.dwconv.weight'] == 4


@pytest.mark.parametrize(
    ('layout', 'extra'),
    [
        ('official', ['norm.weight', 'norm.bias', 'head.weight', 'head.bias']),
        ('mmpretrain', ['head.fc.weight', 'head.fc.bias']),
        ('baselines', ['norm.weight', 'head.fc1.weight', 'head.norm.bias', 'head.fc2.bias']),
        ('timm', ['head.norm.weight', 'head.fc.fc1.weight', 'head.fc.norm.bias', 'head.fc.weight']),
        ('hf', ['norm.weight', 'norm.bias', 'classifier.weight', 'classifier.bias']),
    ],
)
def test_classifiers_are_dropped(layout, extra):
    ours = _random(SIZE)
    theirs = to_layout(ours, layout)
    assert (
        from_layout(theirs | {k: torch.ones(2) for k in extra}).keys() == from_layout(theirs).keys()
    )


def test_a_detector_gives_its_backbone():
    ours = _random(SIZE)
    others = [
        'neck.convs.0.weight',
        'bbox_head.bias',
        'roi_head.bbox_head.fc.weight',
        'norm.weight',
    ]
    for layout in ('ours', 'timm', 'baselines', 'official'):
        inside = {f'module.backbone.{k}': v for k, v in to_layout(ours, layout).items()}
        assert from_layout(inside | {f'module.{k}': torch.ones(1) for k in others}).keys() >= {
            k for k in ours if 'output_norms' not in k
        }
        assert detect_layout(inside) == {'official': 'mmpretrain'}.get(layout, layout)


def test_a_hugging_face_backbone_without_its_prefix():
    theirs = to_layout(_random(SIZE), 'hf')
    bare = {k.removeprefix('poolformer.'): v for k, v in theirs.items()}
    assert detect_layout(bare) == 'hf'
    assert _same(from_layout(bare), from_layout(theirs))


def test_leftovers_raise():
    theirs = to_layout(_random(SIZE), 'timm') | {'stages.0.blocks.0.gate': torch.ones(1)}
    with pytest.raises(CheckpointError, match=r'timm .* 1 tensors \(stages\.0\.blocks\.0\.gate\)'):
        from_layout(theirs)


def test_a_parameter_twice_raises():
    theirs = to_layout(_random(SIZE), 'timm')
    theirs['module.stem.conv.bias'] = torch.ones(8)
    with pytest.raises(CheckpointError, match=r'1 tensors \(module\.stem\.conv\.bias\)'):
        from_layout(theirs)


@pytest.mark.parametrize('shape', [(4,), (4, 2, 3, 3), (1, 4, 2)])
def test_a_pointwise_weight_of_other_dimensions_raises(shape):
    name = 'stages.0.0.mlp.fc1.weight'
    with pytest.raises(CheckpointError, match=f'{name} has shape .* neither'):
        from_layout({name: torch.ones(shape)}, 'baselines')
    with pytest.raises(CheckpointError, match=f'{name} has shape .* neither'):
        to_layout({name: torch.ones(shape)}, 'baselines')


def test_unknown_names_and_layouts_raise():
    with pytest.raises(
        CheckpointError, match=r'2 tensors \(conv1\.weight, fc\.bias\), none named as'
    ):
        detect_layout(['conv1.weight', 'fc.bias'])
    with pytest.raises(CheckpointError, match='no tensors'):
        detect_layout([])
    for call in (from_layout, to_layout):
        with pytest.raises(
            CheckpointError, match=r"unknown layout 'paddle'; choose from ours, off"
        ):
            call({'a': torch.ones(1)}, 'paddle')
