"""What a run watches is what its evaluators report."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric, VOCMetric
from mmseg.evaluation import IoUMetric

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight.monitors import _figures, check_monitors
from poolformer_dense.config.preflight.plan import Plan
from poolformer_dense.measure.shapes import CLASSES

BEST = 'default_hooks.checkpoint.save_best'
COCO = 'coco/bbox_mAP, coco/bbox_mAP_50'


@pytest.fixture(scope='module')
def plans(root, shapes):
    """A detector's and a segmentor's config, to be changed by a copy."""
    return {
        name: load_config(
            str(root / f'configs/demo/{name}_poolformer_s12.py'), {'data_root': str(shapes / data)}
        )
        for name, data in (('retinanet', 'coco'), ('fpn', 'ade'))
    }


@pytest.fixture
def said(plans):
    def check(config='retinanet', evaluator=None, splits=('train', 'val'), **parts):
        cfg = plans[config].copy()
        if evaluator is not None:
            cfg.val_evaluator = cfg.test_evaluator = evaluator
        for name, value in parts.items():
            cfg[name] = value
        notices = list(check_monitors(Plan(cfg, splits)))
        assert all('\n' not in notice.text for notice in notices)
        return [(logging.getLevelName(notice.level), notice.text) for notice in notices]

    return check


def _best(value, **options):
    return dict(
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', save_best=value, **options))
    )


def _stop(monitor, **options):
    return dict(custom_hooks=[dict(type='EarlyStoppingHook', monitor=monitor, **options)])


def _plateau(**options):
    return dict(param_scheduler=[dict(type='ReduceOnPlateauLR', **options)])


IOU = dict(type='IoUMetric')
BOXES = dict(type='CocoMetric', ann_file='x.json')


@pytest.mark.parametrize(
    ('config', 'evaluator', 'parts'),
    [
        ('retinanet', BOXES, _best('auto')),
        ('retinanet', BOXES, _best('coco/bbox_mAP')),
        ('retinanet', BOXES, _best(['coco/bbox_mAP', 'coco/bbox_mAP_s'])),
        ('retinanet', dict(BOXES, metric=['bbox', 'segm']), _best('coco/segm_mAP_75')),
        ('retinanet', dict(BOXES, classwise=True), _best('coco/square_precision')),
        ('retinanet', dict(BOXES, prefix='mine'), _best('mine/bbox_mAP')),
        ('retinanet', dict(BOXES, type='mmdet.FasterCocoMetric'), _best('coco/bbox_mAP')),
        ('retinanet', dict(BOXES, metric='proposal_fast'), _best('coco/AR@300')),
        ('retinanet', dict(BOXES, metric_items=['AR@100']), _best('coco/bbox_AR@100')),
        ('retinanet', dict(type='VOCMetric'), _best('pascal_voc/AP50', rule='greater')),
        (
            'retinanet',
            dict(type='VOCMetric', iou_thrs=[0.5, 0.75]),
            _best('pascal_voc/AP75', rule='greater'),
        ),
        ('retinanet', dict(type='SomeoneElsesMetric'), _best('their/figure')),
        ('retinanet', [BOXES, dict(type='SomeoneElsesMetric')], _best('their/figure')),
        ('retinanet', [BOXES, dict(BOXES, prefix='b')], _best('b/bbox_mAP')),
        ('retinanet', [BOXES, dict(BOXES, format_only=True)], _best('coco/bbox_mAP')),
        ('retinanet', dict(type='Evaluator', metrics=[BOXES]), _best('coco/bbox_mAP')),
        ('retinanet', BOXES, _stop('coco/bbox_mAP')),
        ('retinanet', BOXES, _plateau(monitor='coco/bbox_mAP', rule='greater')),
        ('fpn', IOU, _best('mIoU')),
        ('fpn', IOU, _best('aAcc')),
        ('fpn', dict(IOU, iou_metrics=['mDice', 'mFscore']), _best('mRecall', rule='greater')),
        ('fpn', dict(IOU, iou_metrics='mDice'), _best(['mDice', 'mAcc'], rule='greater')),
    ],
)
def test_figures_that_are_reported(said, config, evaluator, parts):
    assert said(config, evaluator, **parts) == []


@pytest.mark.parametrize(
    ('config', 'evaluator', 'parts', 'text'),
    [
        ('retinanet', BOXES, _best('bbox_mAP'), f"{BEST}='bbox_mAP': .*{COCO}.*=coco/bbox_mAP$"),
        ('retinanet', BOXES, _best('mAP'), f'{BEST}=coco/bbox_mAP$'),
        ('retinanet', BOXES, _best('coco/segm_mAP'), f'{BEST}=coco/bbox_mAP$'),
        ('retinanet', BOXES, _best(['auto', 'coco/mAP']), r'save_best\.1=coco/bbox_mAP$'),
        ('retinanet', dict(BOXES, prefix='mine'), _best('coco/bbox_mAP'), '=mine/bbox_mAP$'),
        ('retinanet', dict(type='VOCMetric'), _best('mAP'), '=pascal_voc/mAP$'),
        ('retinanet', dict(BOXES, classwise=True), _best('coco/star_precision'), 'not report it'),
        ('retinanet', BOXES, _stop('coco/mAP'), r'custom_hooks\.0\.monitor=coco/bbox_mAP$'),
        ('retinanet', BOXES, _plateau(), r"param_scheduler\.0\.monitor='loss': .* not report it"),
        ('retinanet', BOXES, _plateau(monitor='coco/bbox_mAP'), r'0\.rule is less, .*=greater$'),
        ('retinanet', BOXES, _stop('coco/bbox_mAP', rule='less'), 'rule is less, but more coco/'),
        ('retinanet', dict(type='VOCMetric'), _best('pascal_voc/AP50'), 'does not know whether'),
        ('fpn', IOU, _best('IoU'), f'{BEST}=mIoU$'),
        ('fpn', IOU, _best('mDice'), 'aAcc, mIoU, mAcc'),
        ('fpn', dict(IOU, iou_metrics=['mFscore']), _best('mFscore'), 'rule=greater$'),
        (
            'fpn',
            [IOU, dict(IOU, iou_metrics=['mDice'])],
            {},
            "two .* report 'aAcc'.*_evaluator.1.p",
        ),
    ],
)
def test_figures_that_are_not(said, config, evaluator, parts, text):
    [(level, found)] = said(config, evaluator, **parts)
    assert level == 'ERROR'
    assert re.search(text, found), found


def test_without_validation_nothing_is_watched(said):
    [(level, text)] = said('fpn', evaluator=[], **_best('mIoU'))
    assert level == 'WARNING'
    assert 'has no effect' in text
    assert said('fpn', evaluator=[]) == []


def test_a_test_watches_nothing_but_may_report_twice(said):
    assert said('fpn', IOU, ['test'], **_best('typo')) == []
    [(_, text)] = said('fpn', [IOU, IOU], ['test'])
    assert text.startswith('test_evaluator: two evaluators')


@pytest.mark.parametrize('kinds', [['mIoU'], ['mDice', 'mFscore']])
def test_the_names_are_those_of_the_label_metric(plans, kinds):
    metric = IoUMetric(iou_metrics=kinds)
    metric.dataset_meta = dict(classes=CLASSES)
    label = dict(data=torch.arange(3).reshape(1, 1, 3))
    metric.process({}, [dict(pred_sem_seg=label, gt_sem_seg=label)])
    names = _figures(Plan(plans['fpn'], ['val']), 'val', dict(IOU, iou_metrics=kinds))
    assert list(metric.evaluate(1)) == names


def test_the_names_are_those_of_the_detection_metrics(plans, shapes):
    plan = Plan(plans['retinanet'], ['val'])
    path = str(shapes / 'coco/annotations/instances_val2017.json')
    options = dict(classwise=True, metric=['bbox'])
    metric = CocoMetric(ann_file=path, **options)
    metric.dataset_meta = dict(classes=CLASSES)
    boxes = np.array([[0.0, 0, 9, 9]])
    found = dict(bboxes=boxes, scores=np.ones(1), labels=np.zeros(1, int))
    metric.results = [(dict(), dict(img_id=i, **found)) for i in (1, 2, 3, 4)]
    assert list(metric.evaluate(4)) == _figures(plan, 'val', dict(BOXES, **options))
    voc = VOCMetric(iou_thrs=[0.5, 0.75])
    voc.dataset_meta = dict(classes=CLASSES)
    truth = dict(bboxes=boxes, labels=np.zeros(1, int), bboxes_ignore=boxes[:0])
    truth['labels_ignore'] = np.zeros(0, int)
    scored = np.hstack([boxes, np.ones((1, 1))])
    voc.results = [(truth, [scored, scored[:0], scored[:0]])]
    reported = _figures(plan, 'val', dict(type='VOCMetric', iou_thrs=[0.5, 0.75]))
    assert list(voc.evaluate(1)) == reported
