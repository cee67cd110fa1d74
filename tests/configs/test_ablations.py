"""Every ablation of arXiv 2111.11418 is one change of one config."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from backbones.weights import RELEASED

ATTENTION = {'token_mixers', 'norm', 'position_embeddings'}
# What each config changes of the base's Arch, and the released weights it starts from.
ABLATIONS = {
    'identity': ({'token_mixers'}, 'metaformer_id_s12'),
    'random': ({'token_mixers'}, None),
    'depthwise_conv': ({'token_mixers'}, None),
    'pool5': ({'token_mixers'}, None),
    'pool7': ({'token_mixers'}, None),
    'pool9': ({'token_mixers'}, None),
    'layer_norm': ({'norm'}, None),
    'batch_norm': ({'norm'}, None),
    'no_norm': ({'norm'}, None),
    'relu': ({'activation'}, None),
    'silu': ({'activation'}, None),
    'no_residual': ({'residual'}, None),
    'no_mlp': ({'mlp_ratio'}, None),
    # The released attention hybrids bring another norm and a position embedding along.
    'pppa': (ATTENTION, 'metaformer_pppa_s12_224'),
    'ppaa': (ATTENTION, 'metaformer_ppaa_s12_224'),
    'pppf': ({'token_mixers'}, 'metaformer_pppf_s12_224'),
    'ppff': ({'token_mixers'}, 'metaformer_ppff_s12_224'),
}


@pytest.fixture(scope='module')
def ablation(load):
    return lambda name: load(f'ablations/retinanet_{name}')


def _without(mapping, *names):
    return {key: value for key, value in mapping.items() if key not in names}


def test_every_row_has_a_short_config(root):
    files = list((root / 'configs/ablations').glob('*.py'))
    assert {f.stem for f in files} == {f'retinanet_{name}' for name in ABLATIONS}
    assert {f.name: n for f in files if (n := len(f.read_text().splitlines())) > 10} == {}


def test_every_config_is_in_the_docs(root):
    page = (root / 'docs/ablations.md').read_text()
    assert [name for name in ABLATIONS if f'[`{name}`]' not in page] == []


@pytest.mark.parametrize('name', ABLATIONS)
def test_only_the_backbone_differs(load, ablation, name):
    base, cfg = load('retinanet_poolformer_s12'), ablation(name)
    run = {'work_dir', 'mixer', 'mixers', 'fc', 'arch'}
    assert _without(cfg, 'model', *run) == _without(base, 'model', *run)
    assert _without(cfg.model, 'backbone') == _without(base.model, 'backbone')
    assert cfg.model.backbone.out_indices == base.model.backbone.out_indices
    weights = ABLATIONS[name][1]
    if weights is None:
        assert cfg.model.backbone.init_cfg is None
    else:
        assert cfg.model.backbone.init_cfg == dict(type='Pretrained', checkpoint=weights)
        assert weights in RELEASED


@pytest.mark.parametrize('name', ABLATIONS)
def test_arch_differs_in_the_intended_entries(load, ablation, name):
    with torch.device('meta'):
        base = MODELS.build(load('retinanet_poolformer_s12').model.backbone).arch
        arch = MODELS.build(ablation(name).model.backbone).arch
    names = [field.name for field in dataclasses.fields(arch)]
    differing = {n for n in names if getattr(arch, n) != getattr(base, n)}
    assert differing == ABLATIONS[name][0]


def test_mixers_of_the_hybrids(ablation):
    def kinds(name):
        with torch.device('meta'):
            stages = MODELS.build(ablation(name).model.backbone).stages
        return [type(stage[0].token_mixer).__name__ for stage in stages]

    assert kinds('pppa') == ['Pooling'] * 3 + ['Attention']
    assert kinds('ppaa') == ['Pooling'] * 2 + ['Attention'] * 2
    assert kinds('pppf') == ['Pooling'] * 3 + ['SpatialMLP']
    assert kinds('ppff') == ['Pooling'] * 2 + ['SpatialMLP'] * 2


def test_random_matrices_fit_224_pixels_and_stay_frozen(ablation):
    with torch.device('meta'):
        model = MODELS.build(ablation('random').model.backbone)
    matrices = [stage[0].token_mixer.matrix for stage in model.stages]
    assert [m.shape[0] for m in matrices] == [56**2, 28**2, 14**2, 7**2]
    # arXiv 2111.11418, Table 5, notes 21M frozen parameters.
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in frozen) == pytest.approx(21e6, rel=0.02)


@pytest.mark.parametrize('name', ABLATIONS)
def test_a_training_step_moves_backbone_and_neck(ablation, name):
    cfg = ablation(name).model
    cfg.backbone.init_cfg = None
    model = torch.nn.Sequential(MODELS.build(cfg.backbone), MODELS.build(cfg.neck)).train()
    if name == 'no_residual':  # two layer scales of 1e-5 a block leave nothing of the signal
        for parameter_name, parameter in model.named_parameters():
            if 'layer_scale' in parameter_name:
                torch.nn.init.ones_(parameter)
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    before = {n: p.detach().clone() for n, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-3, weight_decay=0)
    sum((level**2).mean() for level in model(torch.randn(2, 3, 64, 96))).backward()
    assert [n for n, p in trainable.items() if p.grad is None] == []
    optimizer.step()
    assert all(p.isfinite().all() for p in trainable.values())
    still = [n for n, p in trainable.items() if torch.equal(p, before[n])]
    pooling = name not in ('identity', 'random', 'depthwise_conv')
    assert [n for n in still if not (pooling and n.endswith('norm1.bias'))] == []


@pytest.mark.parametrize('name', ABLATIONS)
def test_the_same_change_builds_a_segmentor(load, ablation, name):
    change = _without(ablation(name).model.backbone, 'out_indices', 'init_cfg')
    cfg = load('fpn_poolformer_s12')
    cfg.merge_from_dict({'model.backbone': change})
    with torch.device('meta'):
        model = MODELS.build(Config(cfg.model.to_dict()))
    assert model.backbone.out_indices == (0, 1, 2, 3)
    with torch.device('meta'):
        expected = MODELS.build(ablation(name).model.backbone).arch
    assert model.backbone.arch == expected
