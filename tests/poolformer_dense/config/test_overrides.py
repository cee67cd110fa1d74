"""--cfg-options: what exists is merged, what doesn't is named with its nearest neighbour."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolformer_dense.config.load import load_config
from poolformer_dense.config.overrides import apply_overrides
from poolformer_dense.config.walk import walk
from poolformer_dense.errors import UserError


@pytest.fixture(scope='module', params=['retinanet', 'fpn'])
def config_path(request, root):
    return str(root / f'configs/{request.param}_poolformer_s12.py')


@pytest.fixture(scope='module')
def retinanet(root):
    return str(root / 'configs/retinanet_poolformer_s12.py')


@pytest.fixture(scope='module')
def fpn(root):
    return str(root / 'configs/fpn_poolformer_s12.py')


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('train_dataloader.batch_size', 4),  # the config has it
        ('train_dataloader.drop_last', True),  # DataLoader takes it
        ('train_dataloader.dataset.pipeline.2.scale', (256, 256)),
        ('model.backbone.with_cp', True),  # PoolFormer takes it
        ('model.backbone.arch.depths', (1, 1, 1, 1)),
        ('model.bbox_head.reg_decoded_bbox', True),  # RetinaHead's base class takes it
        ('optim_wrapper.clip_grad.max_norm', 1.0),
        ('optim_wrapper.optimizer.betas', (0.9, 0.99)),
        ('optim_wrapper.paramwise_cfg.norm_decay_mult', 0.0),
        ('param_scheduler.0.verbose', True),
        ('default_hooks.checkpoint.max_keep_ckpts', 1),
        ('train_cfg.max_epochs', 1),
        ('train_cfg.dynamic_intervals', [(1, 2)]),
        ('randomness.seed', 3),  # a Runner argument
        ('find_unused_parameters', True),
        ('log_processor.num_digits', 2),
        ('model.test_cfg.score_thr', 0.0),
    ],
)
def test_valid_keys(retinanet, key, value):
    overrides = {key: value}
    if key == 'model.backbone.arch.depths':
        overrides = {'model.backbone.arch': 's24'}
    cfg = load_config(retinanet, overrides)
    node = cfg
    key, value = next(iter(overrides.items()))
    for part in key.split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == value


@pytest.mark.parametrize(
    ('key', 'message'),
    [
        (
            'model.backbone.drop_path',
            'PoolFormer.*drop_path.*nearest.*model.backbone.drop_path_rate',
        ),
        ('train_dataloader.batchsize', 'nearest valid key is train_dataloader.batch_size'),
        ('train_dataloader.dataset.batch_size', 'CocoDataset takes no .batch_size'),
        ('optim_wrapper.optimizer.weight_deacy', 'nearest.*optim_wrapper.optimizer.weight_decay'),
        ('train_cfg.max_iter', 'EpochBasedTrainLoop takes no .max_iter'),
        ('modle.backbone.arch', 'modle does not exist.*nearest valid key is model'),
        ('seed', 'seed does not exist.*nearest valid key is randomness.seed'),
        ('model.test_cfg.score_threshold', 'nearest valid key is model.test_cfg.score_thr'),
        ('default_hooks.checkpoint.max_keep', 'CheckpointHook.*max_keep_ckpts'),
        ('train_dataloader.dataset.pipeline.9.scale', 'pipeline'),
        ('model.backbone.arch.depth', 'arch'),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(retinanet, key, message):
    with pytest.raises(UserError, match=message) as caught:
        load_config(retinanet, {key: 1})
    assert '\n' not in str(caught.value)
    assert key in str(caught.value)


def test_new_type_brings_its_own_arguments(retinanet):
    overrides = {'optim_wrapper.optimizer.type': 'SGD', 'optim_wrapper.optimizer.momentum': 0.9}
    assert load_config(retinanet, overrides).optim_wrapper.optimizer.momentum == 0.9


@pytest.mark.parametrize(
    ('key', 'value', 'message'),
    [
        (
            'optim_wrapper.optimizer.type',
            'AdamX',
            "no class is called 'AdamX'; the nearest is Adam",
        ),
        ('train_cfg.max_epochs', 'abc', "'abc' is text, the config has 12 there"),
        (
            'custom_imports.imports',
            'my.a,my.b',
            'the config has a list there; put brackets around a list: '
            '"custom_imports.imports=[my.a,my.b]"',
        ),
        (
            'train_dataloader.dataset.data_prefix.img',
            ['a', 'b'],
            "is a list, the config has the text 'train2017/' there; put quotes around a text with "
            'commas: train_dataloader.dataset.data_prefix.img="\'a,b\'"',
        ),
        ('data_root', ['my', 'data'], 'put quotes around a text with commas: data_root='),
    ],
)
def test_wrong_values_are_named(retinanet, key, value, message):
    with pytest.raises(UserError, match=f'{key}: .*{re.escape(message)}'):
        load_config(retinanet, {key: value})


@pytest.mark.parametrize(
    'words',
    [
        {'val_evaluator.metric': ['bbox', 'segm']},
        {'load_from': '/a b/c,d.pth'},
        {'train_dataloader.dataset.ann_file': 'a,b.json'},
        {'train_dataloader.dataset.metainfo.classes': ('traffic light', 'stop sign')},
    ],
)
def test_values_arrive_as_they_are(retinanet, words):
    cfg = load_config(retinanet, words)
    key, value = next(iter(words.items()))
    assert dict(walk(cfg))[key] == value


def test_new_hook(retinanet):
    overrides = {'default_hooks.early.type': 'EarlyStoppingHook'}
    assert 'early' in load_config(retinanet, overrides).default_hooks


def test_a_name_of_the_config_file_has_no_effect_and_says_so(retinanet):
    with pytest.raises(
        UserError, match=r'no effect; set train_dataloader.dataset.pipeline.2.scale'
    ):
        load_config(retinanet, {'train_pipeline.2.scale': (256, 256)})


@pytest.mark.parametrize('new', ['elsewhere', 'elsewhere/', '/abs/coco'])
def test_data_root_moves_every_path(config_path, new):
    cfg = load_config(config_path, {'data_root': new})
    old = load_config(config_path).data_root
    text = cfg.pretty_text
    assert old.rstrip('/') not in text
    assert cfg.train_dataloader.dataset.data_root.rstrip('/') == new.rstrip('/')
    if 'ann_file' in cfg.val_evaluator:
        expected = new.rstrip('/') + '/annotations/instances_val2017.json'
        assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == expected


def test_rejected_overrides_leave_the_config_alone(retinanet):
    cfg = load_config(retinanet)
    before = cfg.pretty_text
    with pytest.raises(UserError):
        apply_overrides(cfg, {'train_dataloader.batch_size': 7, 'nonsense.key': 1})
    assert cfg.pretty_text == before


@given(typo=st.integers(0, 9), letter=st.sampled_from('xqv'))
@settings(max_examples=10)
def test_any_misspelling_is_caught(root, typo, letter):
    key = 'batch_size'
    wrong = f'train_dataloader.{key[:typo]}{letter}{key[typo + 1 :]}'
    with pytest.raises(UserError, match=r'nearest valid key is train_dataloader\.batch_size'):
        load_config(str(root / 'configs/retinanet_poolformer_s12.py'), {wrong: 2})


def test_missing_config():
    with pytest.raises(UserError, match=r'config nowhere\.py does not exist'):
        load_config('nowhere.py')
