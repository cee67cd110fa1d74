"""What the analysis counts, against counts by hand."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
import torch

from backbones import MetaFormer
from poolformer_dense.errors import UserError
from poolformer_dense.measure.analysis import (
    analyze,
    count_macs,
    count_saved_bytes,
    format_analysis,
)

DIMS = (8, 16, 32, 64)
BARE = dict(
    depths=(1, 1, 1, 1),
    dims=DIMS,
    token_mixers='IdentityMixing',
    norm='NoNorm',
    layer_scale_init=None,
    mlp_ratio=0,
    residual=False,
)
# 64x64 pixels give maps of 256, 64, 16 and 4 tokens.
TOKENS = (256, 64, 16, 4)
CONVOLUTIONS = [
    TOKENS[0] * 8 * 3 * 7 * 7,
    *(TOKENS[i] * DIMS[i] * DIMS[i - 1] * 3 * 3 for i in (1, 2, 3)),
]
FLOAT = 4


def _model(**changes):
    return MetaFormer(BARE | changes)


def test_macs_of_convolutions():
    assert count_macs(_model(), (64, 64)) == CONVOLUTIONS


def test_macs_of_the_channel_mlp():
    extra = [2 * n * dim * 4 * dim for n, dim in zip(TOKENS, DIMS, strict=True)]
    expected = [a + b for a, b in zip(CONVOLUTIONS, extra, strict=True)]
    assert count_macs(_model(mlp_ratio=4), (64, 64)) == expected


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_macs_of_attention_include_its_two_products(device):
    # torch runs a fused kernel on CPUs and none on meta.
    model = _model(token_mixers=dict(type='Attention', head_dim=8)).to(device)
    extra = [
        4 * n * dim * dim + 2 * n * n * dim  # qkv and projection; scores and their weighting
        for n, dim in zip(TOKENS, DIMS, strict=True)
    ]
    expected = [a + b for a, b in zip(CONVOLUTIONS, extra, strict=True)]
    assert count_macs(model, (64, 64)) == expected


def test_macs_of_norms_activations_and_pooling_are_not_counted():
    model = _model(token_mixers='Pooling', norm='ChannelLayerNorm', residual=True)
    assert count_macs(model, (64, 64)) == CONVOLUTIONS


def test_saved_bytes_are_the_inputs_of_convolutions():
    # Each downsampling keeps its input: the image in stage 1, then the previous stage's output.
    maps = [n * dim * FLOAT for n, dim in zip(TOKENS, DIMS, strict=True)]
    assert count_saved_bytes(_model(), (64, 64)) == [3 * 64 * 64 * FLOAT, *maps[:3]]


def test_saved_bytes_count_each_storage_once():
    # The block's input is kept by fc1 and, as the stage's output, by nothing else: with a residual,
    # fc1 keeps x, ReLU and fc2 keep the same hidden map, the next stage keeps x plus the branch.
    model = _model(mlp_ratio=4, activation='ReLU', residual=True)
    maps = [n * dim * FLOAT for n, dim in zip(TOKENS, DIMS, strict=True)]
    block = [m + 4 * m for m in maps]
    before = [3 * 64 * 64 * FLOAT, *maps[:3]]
    expected = [a + b for a, b in zip(block, before, strict=True)]
    assert count_saved_bytes(model, (64, 64)) == expected


def test_saved_bytes_leave_parameters_and_buffers_out():
    # Batch norm has its running statistics among its saved tensors, and new ones of the batch. Its
    # inputs are new too: of the block, and in stage 4 of the output (elsewhere that is what the
    # next downsampling keeps anyway).
    before = sum(count_saved_bytes(_model(), (64, 64)))
    statistics = [2 * 2 * dim * FLOAT for dim in DIMS]
    inputs = [n * dim * FLOAT for n, dim in zip(TOKENS, DIMS, strict=True)]
    expected = before + sum(statistics) + sum(inputs) + inputs[3]
    assert sum(count_saved_bytes(_model(norm='BatchNorm'), (64, 64))) == expected


def test_recomputation_and_freezing_save_memory():
    arch = BARE | dict(mlp_ratio=4)
    plain = count_saved_bytes(MetaFormer(arch), (64, 64))
    assert sum(count_saved_bytes(MetaFormer(arch, with_cp=True), (64, 64))) < 0.5 * sum(plain)
    frozen = count_saved_bytes(MetaFormer(arch, frozen_stages=2), (64, 64))
    assert frozen[:2] == [0, 0]
    assert frozen[3] == plain[3]


def test_counting_leaves_the_backbone_as_it_is():
    model = _model(norm='BatchNorm').train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_saved_bytes(model, (64, 64))
    count_macs(model, (64, 64))
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(d._forward_pre_hooks for d in model.downsamples)


def test_a_preset_adds_up():
    analysis = analyze('randformer_s12')
    model = MetaFormer('randformer_s12')
    total = analysis.total
    assert total.parameters == sum(p.numel() for p in model.parameters())
    assert total.frozen == sum(p.numel() for p in model.parameters() if not p.requires_grad)
    assert [stage.frozen > 0 for stage in analysis.stages] == [False, False, True, True]
    assert total.macs == sum(count_macs(model, (224, 224)))
    assert analysis.model_parameters is None


def test_position_embeddings_belong_to_their_stage():
    with_it = analyze('metaformer_pppa_s12_224').stages[3].parameters
    stage = MetaFormer('metaformer_pppa_s12_224')
    rest = [stage.downsamples[3], stage.stages[3], stage.output_norms['3']]
    assert with_it == 7 * 7 * 512 + sum(p.numel() for m in rest for p in m.parameters())


def test_a_config_gives_its_backbone_and_the_whole_model(root):
    analysis = analyze(str(root / 'configs/retinanet_poolformer_s12.py'), (64, 96))
    assert analysis.model_parameters == 21_653_044
    assert analysis.total.parameters == 11_403_200 - 2 * 64  # no norm on the unused stride 4
    assert analysis.size == (64, 96)
    assert format_analysis(analysis).splitlines()[-1].split() == ['whole', 'model', '21,653,044']


@pytest.mark.parametrize(
    ('target', 'size', 'message'),
    [
        ('poolformer_s13', (224, 224), r'neither a config file nor a preset; presets are poolfor'),
        ('poolformer_s12', (224, 16), r'--size 224 16: stage 4 needs sides of at least 32'),
        ('randformer_s12', (256, 256), r'randformer_s12 at 256x256: .* set interpolate=True'),
    ],
)
def test_what_cannot_be_analyzed_is_named(target, size, message):
    with pytest.raises(UserError, match=message):
        analyze(target, size)


def test_configs_without_one_of_our_backbones_are_named(tmp_path):
    config = tmp_path / 'nothing.py'
    config.write_text("default_scope = 'mmdet'\n")
    with pytest.raises(UserError, match=r'nothing.py has no model'):
        analyze(str(config))
    config = tmp_path / 'resnet.py'
    config.write_text(
        "_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'\ndefault_scope='mmdet'\n"
    )
    with pytest.raises(UserError, match=r'model.backbone is of type ResNet'):
        analyze(str(config))


@pytest.fixture
def analyze_model(root, monkeypatch, capsys):
    """Run the tool in this process; returns its exit code and the lines that it prints."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['analyze_model.py', *arguments])
        with pytest.raises(SystemExit) as exit:
            runpy.run_path(str(root / 'tools/analyze_model.py'), run_name='__main__')
        captured = capsys.readouterr()
        return exit.value.code, (captured.err or captured.out).splitlines()

    return run


def test_the_tool_prints_a_table(analyze_model):
    code, (header, columns, *rows) = analyze_model('poolformer_s12')
    assert code == 0
    assert header == 'poolformer_s12: one image of 224x224'
    assert ' '.join(columns.split()) == (
        'stage parameters of them frozen GMACs saved MiB mixing MLP'
    )
    assert [row.split()[0] for row in rows] == ['1', '2', '3', '4', 'backbone']
    assert rows[-1].split()[1:4] == ['11,403,200', '0', '1.812']


def test_the_tool_prints_json_and_nothing_else(run, root, tmp_path):
    config = root / 'configs/fpn_poolformer_s12.py'
    done = run('analyze_model.py', config, '--size', 64, 96, '--json', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result['size'] == [64, 96]
    assert result['model_parameters'] == 15_669_846
    assert len(result['stages']) == 4
    assert result['total']['parameters'] == 11_403_200
    for name, value in result['total'].items():
        assert value == sum(stage[name] for stage in result['stages'])


def test_the_tool_says_what_is_wrong_in_one_line(analyze_model):
    code, lines = analyze_model('resnet50')
    assert code == 2
    assert lines[-1].startswith('error: resnet50 is neither a config file nor')
