"""A name that nobody reads is refused in one line; whatever is read, or is a variable, is not."""

from __future__ import annotations

import re
from pathlib import Path

import mmdet
import mmseg
import pytest
from mmengine.config import Config

from poolformer_dense.config.load import load_config
from poolformer_dense.config.misspelled import misspelled
from poolformer_dense.errors import UserError

SCOPED = "custom_hooks = [dict(type='mmdet.MeanTeacherHook', momentum=0.1, skip_buffer=True)]"


@pytest.fixture
def load(root, tmp_path):
    """Load a config that has one of ours as base, and these lines."""

    def load(lines, base='retinanet_poolformer_s12', overrides=None):
        path = tmp_path / 'mine.py'
        path.write_text(f'_base_ = {str(root / "configs" / base)!r} + ".py"\n{lines}\n')
        return load_config(str(path), overrides)

    return load


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('default_hook = dict()', 'default_hook does not exist (nothing reads it); the nearest '
         'valid key is default_hooks'),
        ('train_dataloder = dict(batch_size=2)', 'train_dataloder does not exist'),
        ('trian_cfg = dict(max_epochs=2)', 'the nearest valid key is train_cfg'),
        ('optim_wraper = 1', 'the nearest valid key is optim_wrapper'),
        ('train_cfg = dict(max_epoch=2)', 'train_cfg.max_epoch does not exist (EpochBasedTrainLoop '
         "takes no 'max_epoch'); the nearest valid key is train_cfg.max_epochs"),
        ('val_cfg = dict(fp_16=True)', 'the nearest valid key is val_cfg.fp16'),
        ('train_dataloader = dict(batchsize=2)', 'the nearest valid key is '
         'train_dataloader.batch_size'),
        ('train_dataloader = dict(dataset=dict(anno_file=1))', "(CocoDataset takes no 'anno_file')"
         '; the nearest valid key is train_dataloader.dataset.ann_file'),
        ('train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty=True)))',
         'filter_cfg.filter_empty does not exist (nothing reads it); the nearest valid key is '
         'train_dataloader.dataset.filter_cfg.filter_empty_gt'),
        ('train_dataloader = dict(sampler=dict(shufle=True))', 'train_dataloader.sampler.shuffle'),
        ('x = _base_.train_pipeline\nx[2].keep_ration = True\n'
         'train_dataloader = dict(dataset=dict(pipeline=x))', 'dataset.pipeline.2.keep_ratio'),
        ('model = dict(backbone=dict(drop_path=0.1))', 'model.backbone.drop_path_rate'),
        ('model = dict(bbox_head=dict(num_class=3))', 'RetinaHead takes no \'num_class\'); the '
         'nearest valid key is model.bbox_head.num_classes'),
        ('model = dict(bbox_head=dict(loss_cls=dict(gama=2)))', 'model.bbox_head.loss_cls.gamma'),
        ('model = dict(data_preprocessor=dict(pad_size_division=3))', 'pad_size_divisor'),
        ('optim_wrapper = dict(optimizer=dict(weight_deacy=0.1))', 'weight_decay'),
        ('optim_wrapper = dict(clip_grad=dict(max_nrom=1))', 'optim_wrapper.clip_grad.max_norm'),
        ('optim_wrapper = dict(paramwise_cfg=dict(norm_decay=0))', 'paramwise_cfg.norm_decay_mult'),
        ('param_scheduler = [dict(type="MultiStepLR", milestone=[1])]', 'scheduler.0.milestones'),
        ('default_hooks = dict(checkpoint=dict(max_keep=1))', 'CheckpointHook'),
        ('custom_hooks = [dict(type="EMAHook", momentun=0.1)]', 'custom_hooks.0.momentum'),
        ('val_evaluator = dict(metrics_items=["mAP"])', 'val_evaluator.metric_items'),
        ('visualizer = dict(vis_backend=[])', 'the nearest valid key is visualizer.vis_backends'),
        ('env_cfg = dict(cudnn_benchmarks=True)', 'env_cfg.cudnn_benchmark'),
        ('randomness = dict(sede=1)', 'randomness.seed'),
        ('model = dict(type="RetinaNett")', "model.type: no class is called 'RetinaNett'; the "
         'nearest is RetinaNet'),
        ('custom_hooks = [dict(type="NoSuchThing")]', 'custom_hooks.0.type: no class is called'),
    ],
)  # fmt: skip
def test_misspelled_names_in_a_file_of_detection(load, lines, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load(lines)
    text = str(caught.value)
    assert re.match(r'config \S*mine\.py(, line \d+)?: ', text)
    assert '\n' not in text


@pytest.mark.parametrize(
    ('lines', 'message'),
    [
        ('val_evaluator = dict(iou_metric=["mIoU"])', 'val_evaluator.iou_metrics'),  # or no effect
        ('model = dict(decode_head=dict(feature_stride=[4]))', 'decode_head.feature_strides'),
        ('x = _base_.train_pipeline\nx[2].keep_ration = True\n'
         'train_dataloader = dict(dataset=dict(pipeline=x))', 'pipeline.2.keep_ratio'),
        ('train_dataloader = dict(dataset=dict(reduce_zero_labels=True))', 'reduce_zero_label'),
        ('train_cfg = dict(max_iter=2)', 'train_cfg.max_iters'),
        ('model = dict(decode_head=dict(norm_cfg=dict(require_grad=True)))', 'requires_grad'),
    ],
)  # fmt: skip
def test_misspelled_names_in_a_file_of_segmentation(load, lines, message):
    with pytest.raises(UserError, match=re.escape('the nearest valid key is ') + f'.*{message}'):
        load(lines, 'fpn_poolformer_s12')


@pytest.mark.parametrize(
    'lines',
    [
        'default_hook = dict(type="IterTimerHook")\ndefault_hooks = dict(timer=default_hook)',
        'train_dataset = 1\nmodel_cfg = None\nconv_cfg = None\nval_pipeline = []',
        'x = 1\ndel x',
        SCOPED,
        'model = dict(bbox_head=dict(loss_cls=dict(_delete_=True, type="mmdet.FocalLoss")))',
        'custom_hooks = [dict(type="IterTimerHook", priority=3)]',
        'param_scheduler = [dict(type="CosineAnnealingLR", T_max=3, convert_to_iter_based=True)]',
        'train_cfg = dict(_delete_=True, by_epoch=True, max_epochs=3)',
        'optim_wrapper = dict(constructor="Mine", paramwise_cfg=dict(layer_decay=0.9))',
        'model = dict(neck=dict(norm_cfg=dict(type="BN", requires_grad=False, momentum=0.1)))',
        'model = dict(train_cfg=dict(mine=1), test_cfg=dict(nms=dict(split_thr=3)))',
        'train_dataloader = dict(dataset=dict(metainfo=dict(mine=1)), prefetch_factor=3)',
        'model = dict(bbox_head=dict(init_cfg=dict(type="Normal", layer="Conv2d", std=0.01, '
        'override=dict(type="Normal", name="retina_cls", std=0.01, bias_prob=0.01))))',
        'train_dataloader = dict(dataset=dict(pipeline=[dict(type="Albu", transforms=[dict('
        'type="Resize", height=3), dict(type="OneOf", p=1)])]))',
    ],
)  # fmt: skip
def test_what_is_read_is_accepted(load, lines):
    load(lines)


def test_a_base_is_named_with_the_line(root, tmp_path):
    base = tmp_path / 'base.py'
    base.write_text(
        f'_base_ = {str(root / "configs/retinanet_poolformer_s12")!r} + ".py"\n'
        'train_cfg = dict(\n    max_epoch=2)\n'
    )
    (tmp_path / 'top.py').write_text("_base_ = 'base.py'\nx = 1\n")
    with pytest.raises(UserError, match=r'config \S*base\.py, line 3: train_cfg\.max_epoch does'):
        load_config(str(tmp_path / 'top.py'))


@pytest.mark.parametrize(
    ('overrides', 'message'),
    [
        (
            {'optim_wrapper.optimizer.type': 'SGD', 'optim_wrapper.optimizer.betas': (0.9, 0.9)},
            "optim_wrapper.optimizer.betas does not exist (SGD takes no 'betas')",
        ),
        (
            {'model.backbone.type': 'ResNet'},
            '--cfg-options model.backbone.type: model.backbone.arch does not exist (ResNet takes',
        ),
        (
            {'model.backbone.init_cfg': dict(type='Pretrained', chekpoint='a')},
            '--cfg-options model.backbone.init_cfg: model.backbone.init_cfg.chekpoint does not',
        ),
    ],
)
def test_what_an_override_brings_is_checked_too(load, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load('', overrides=overrides)


def test_every_config_of_ours_is_accepted(root):
    for path in sorted((root / 'configs').rglob('*.py')):
        if '_base_' not in path.parts:
            load_config(str(path))


@pytest.mark.parametrize('package', [mmdet, mmseg])
def test_configs_of_the_toolboxes_are_accepted(package):
    paths = sorted(Path(package.__path__[0], '.mim', 'configs').glob('[a-z]*/*.py'))[::40]
    for path in paths:
        cfg = Config.fromfile(path, import_custom_modules=False)
        cfg.setdefault('default_scope', package.__name__)
        assert [*misspelled(cfg)] == [], path
