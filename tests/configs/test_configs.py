"""The stock configs are the published recipes, and every config builds."""

from __future__ import annotations

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from backbones.weights import RELEASED
from engine.runtime import load_config

STOCK = ['retinanet_poolformer_s12', 'mask_rcnn_poolformer_s12', 'fpn_poolformer_s12']
CONFIGS = [*STOCK, *(f'demo/{name}' for name in STOCK)]


@pytest.fixture(scope='module')
def load(root):
    cache = {}

    def load_once(name: str) -> Config:
        if name not in cache:
            cache[name] = load_config(str(root / f'configs/{name}.py'))
        return cache[name]

    return load_once


def _pipeline(cfg, split):
    steps = cfg[f'{split}_dataloader'].dataset.pipeline
    return {step['type']: step for step in steps}


@pytest.mark.parametrize('name', CONFIGS)
def test_every_config_file_is_short(root, name):
    assert len((root / f'configs/{name}.py').read_text().splitlines()) <= 45


def test_no_config_is_forgotten(root):
    found = {
        str(path.relative_to(root / 'configs').with_suffix(''))
        for path in (root / 'configs').rglob('*.py')
        if not {'_base_', 'ablations'} & set(path.parts)  # ablations have tests of their own
    }
    assert found == set(CONFIGS)


@pytest.mark.parametrize(
    ('name', 'parameters'),
    [
        ('retinanet_poolformer_s12', 21_653_044),
        ('mask_rcnn_poolformer_s12', 31_570_608),
        ('fpn_poolformer_s12', 15_669_846),
    ],
)
def test_parameter_counts(load, name, parameters):
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ('name', 'lr'), [('retinanet_poolformer_s12', 1e-4), ('mask_rcnn_poolformer_s12', 2e-4)]
)
def test_coco_recipe(load, name, lr):
    cfg = load(name)
    assert set(cfg.optim_wrapper) - {'_scope_'} == {'type', 'optimizer'}
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=lr, weight_decay=1e-4)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 0.001, 500)
    assert (steps.type, steps.milestones, steps.gamma) == ('MultiStepLR', [8, 11], 0.1)
    assert cfg.train_cfg.max_epochs == 12
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 16
    train = _pipeline(cfg, 'train')
    assert train['Resize']['scale'] == (1333, 800)
    assert train['Resize']['keep_ratio'] is True
    assert train['RandomFlip']['prob'] == 0.5
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.mean == [123.675, 116.28, 103.53]
    assert preprocessor.std == [58.395, 57.12, 57.375]
    assert preprocessor.bgr_to_rgb is True
    assert preprocessor.pad_size_divisor == 32
    assert 'drop_path_rate' not in cfg.model.backbone
    assert 'frozen_stages' not in cfg.model.backbone


def test_retinanet_pyramid(load):
    cfg = load('retinanet_poolformer_s12')
    assert cfg.model.backbone.out_indices == (1, 2, 3)
    neck = cfg.model.neck
    assert (neck.in_channels, neck.start_level, neck.num_outs) == ([128, 320, 512], 0, 5)
    assert neck.add_extra_convs == 'on_input'


def test_ade20k_recipe(load):
    cfg = load('fpn_poolformer_s12')
    assert set(cfg.optim_wrapper) - {'_scope_'} == {'type', 'optimizer'}
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=2e-4, weight_decay=1e-4)
    [poly] = cfg.param_scheduler
    assert (poly.type, poly.power, poly.eta_min, poly.end) == ('PolyLR', 0.9, 0.0, 40000)
    assert cfg.train_cfg.max_iters == 40000
    assert cfg.train_dataloader.batch_size * 8 == cfg.auto_scale_lr.base_batch_size == 32
    train, test = _pipeline(cfg, 'train'), _pipeline(cfg, 'test')
    assert train['RandomResize']['scale'] == (2048, 512)
    assert train['RandomResize']['ratio_range'] == (0.5, 2.0)
    assert train['RandomCrop'] == dict(type='RandomCrop', crop_size=(512, 512), cat_max_ratio=0.75)
    assert train['LoadAnnotations']['reduce_zero_label'] is True
    assert 'PhotoMetricDistortion' in train
    assert test['ResizeToMultiple']['size_divisor'] == 32
    head = cfg.model.decode_head
    assert (head.channels, head.dropout_ratio, head.num_classes) == (128, 0.1, 150)
    assert head.norm_cfg.type == 'SyncBN'
    assert cfg.model.neck.out_channels == 256


@pytest.mark.parametrize('name', STOCK)
def test_stock_weights_are_the_released_ones(load, name):
    init_cfg = load(name).model.backbone.init_cfg
    assert init_cfg.type == 'Pretrained'
    assert RELEASED[init_cfg.checkpoint].url == (
        'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s12.pth.tar'
    )
