"""A loss that can't train its head is named before the model is built."""

from __future__ import annotations

import logging
import re
import warnings

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from poolformer_dense.config.datasets import wrong_num_classes
from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight.head_losses import check_losses
from poolformer_dense.config.preflight.plan import Plan

CE = 'CrossEntropyLoss'


@MODELS.register_module()
class PickyLoss(nn.Module):
    """A user's own, which takes three classes."""

    def forward(self, logits, labels, **_):
        if logits.shape[1] != 3:
            raise RuntimeError('three\nclasses, please')
        return logits.mean()


@pytest.fixture(scope='module')
def head_problems(root):
    """What is said of the demo's head with these arguments and this loss."""
    cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'))

    def check(loss=None, place='decode_head', **head):
        changed = cfg.copy()
        model = changed.model.to_dict()
        node = model['decode_head'] | head
        if loss is not None:
            node['loss_decode'] = loss
        if place == 'auxiliary_head':
            node = [dict(model['decode_head'], type='FCNHead'), node]
        model[place] = node
        changed.model = model
        for split in (['train', 'val'], ['test']):
            notices = list(check_losses(Plan(changed, split)))
            assert all('\n' not in notice.text for notice in notices)
        return [notice.text for notice in notices if notice.level == logging.ERROR]

    return check


@pytest.mark.parametrize(
    ('loss', 'head'),
    [
        (dict(type=CE, class_weight=[1.0] * 4), {}),
        (dict(type=CE, class_weight=(1.0, 2.0, 1.0, 0.0), loss_weight=0.0), {}),
        (dict(type='mmseg.CrossEntropyLoss', avg_non_ignore=True), dict(ignore_index=0)),
        (dict(type=CE, use_sigmoid=True), {}),
        (dict(type=CE, use_sigmoid=True), dict(num_classes=2, out_channels=1)),
        (dict(type=CE, use_sigmoid=True), dict(num_classes=1)),
        (dict(type=CE, use_sigmoid=True, class_weight=[3.0]), dict(num_classes=2, out_channels=1)),
        (dict(type=CE), dict(num_classes=2)),
        (dict(type=CE), dict(num_classes=2, out_channels=2)),
        (dict(type=CE), dict(num_classes=150)),
        (dict(type='DiceLoss'), dict(num_classes=2, out_channels=1)),
        ([dict(type=CE), dict(type='DiceLoss', loss_name='loss_dice')], {}),
        (
            dict(type='LovaszLoss', loss_type='binary', reduction='none'),
            dict(num_classes=2, out_channels=1),
        ),
        (dict(type='LovaszLoss', reduction='none', class_weight=[1.0] * 4), {}),
        (dict(type='TverskyLoss', class_weight=[1.0] * 4), {}),
        (dict(type='PickyLoss'), dict(num_classes=3)),
    ],
)
def test_losses_that_fit_are_left_alone(head_problems, loss, head):
    assert head_problems(loss, **head) == []


@pytest.mark.parametrize(
    ('loss', 'head', 'said'),
    [
        (dict(type=CE, class_weight=[1.0, 2.0]), {}, 'class_weight has 2 weights, but .* 4 output'),
        (dict(type=CE, class_weight=[1.0] * 5), {}, 'has 5 weights, .*give 4'),
        (dict(type='TverskyLoss', class_weight=[1.0, 2.0]), {}, 'has 2 weights, .*give 4'),
        (dict(type='LovaszLoss', reduction='none', class_weight=[1.0] * 6), {}, 'give 4'),
        (dict(type=CE, use_sigmoid=True, class_weight=[1.0] * 4), {}, 'has 4 weights, .* one'),
        (dict(type=CE, class_weight='no/weights.json'), {}, r'class_weight=no/weights.json: '),
        (
            [dict(type=CE), dict(type=CE, class_weight=[1.0], loss_name='loss_b')],
            {},
            r'loss_decode\.1\.class_weight has 1',
        ),
        (dict(type=CE), dict(num_classes=1), r'softmax over one .*decode_head\.num_classes=1'),
        (dict(type=CE), dict(num_classes=2, out_channels=1), r'out_channels=1.*use_sigmoid=True'),
        (None, dict(num_classes=1), 'softmax over one output channel'),
        (dict(type='TverskyLoss'), dict(num_classes=1), 'softmax over one output channel'),
        (
            dict(type='LovaszLoss', reduction='none'),
            dict(num_classes=2, out_channels=1),
            'softmax over one output channel',
        ),
        (
            [dict(type=CE, use_sigmoid=True), dict(type=CE, loss_name='loss_b')],
            dict(num_classes=2, out_channels=1),
            r'loss_decode\.1 \(CrossEntropyLoss\): a softmax',
        ),
        (dict(type=CE), dict(out_channels=3), 'out_channels=3, but num_classes=4'),
        (dict(type=CE, use_sigmoid=True), dict(out_channels=1), 'out_channels=1 tells two classes'),
        (dict(type='PickyLoss'), {}, r'PickyLoss\) fails .*RuntimeError: three classes, please'),
    ],
)
def test_a_loss_that_does_not_fit(head_problems, loss, head, said):
    [text] = head_problems(loss, **head)
    assert text.startswith('model.decode_head')
    assert re.search(said, text), text


def test_heads_beside_the_main_one_are_checked(head_problems):
    [text] = head_problems(dict(type=CE, class_weight=[1.0]), place='auxiliary_head')
    assert text.startswith('model.auxiliary_head.1.loss_decode.class_weight has 1 weights')


def test_weights_in_a_file(head_problems, tmp_path):
    np.save(tmp_path / 'weights.npy', np.ones(3))
    loss = dict(type=CE, class_weight=str(tmp_path / 'weights.npy'))
    assert head_problems(loss, num_classes=3) == []
    [text] = head_problems(loss)
    assert 'has 3 weights' in text


def test_what_is_refused_does_fail(head_problems):
    """The advice is right: with `use_sigmoid` one channel learns, without it, it can't."""
    labels = torch.zeros(1, 2, 2, dtype=torch.long)
    for sigmoid in (False, True):
        logits = torch.zeros(1, 1, 2, 2, requires_grad=True)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            loss = MODELS.build(dict(type='mmseg.CrossEntropyLoss', use_sigmoid=sigmoid))
        loss(logits, labels, ignore_index=255).backward()
        assert logits.grad.any() == sigmoid


@pytest.mark.parametrize(
    ('config', 'place', 'weights', 'sigmoid', 'said'),
    [
        ('mask_rcnn', 'roi_head.bbox_head', [1.0] * 4, False, None),
        ('mask_rcnn', 'roi_head.bbox_head', 2.0, False, None),
        ('mask_rcnn', 'roi_head.bbox_head', [1.0] * 3, False, '3 weights, .* 3 classes and the'),
        ('mask_rcnn', 'roi_head.bbox_head', [1.0] * 81, False, 'give 4'),
        ('retinanet', 'bbox_head', [1.0] * 3, True, None),
        ('retinanet', 'bbox_head', [1.0], True, None),
        ('retinanet', 'bbox_head', [1.0] * 4, True, 'has 4 weights, .*give 3'),
    ],
)
def test_weights_of_a_detector(root, config, place, weights, sigmoid, said):
    cfg = load_config(str(root / f'configs/demo/{config}_poolformer_s12.py'))
    node = cfg.model
    for part in place.split('.'):
        node = node[part]
    node.loss_cls = dict(type=CE, use_sigmoid=sigmoid, class_weight=weights)
    texts = [notice.text for notice in check_losses(Plan(cfg, ['train']))]
    if said is None:
        assert texts == []
    else:
        [text] = texts
        assert text.startswith(f'model.{place}.loss_cls.class_weight')
        assert re.search(said, text), text


@pytest.mark.parametrize(
    ('place', 'node', 'refused'),
    [
        ('auxiliary_head', [dict(type='FCNHead', num_classes=2)], True),
        ('auxiliary_head', [dict(type='STDCHead', num_classes=2)], False),  # boundaries
        ('rpn_head', dict(type='FCOSHead', num_classes=1), False),
        ('semantic_head', dict(type='FusedSemanticHead', num_classes=183), False),
        ('mask_head', dict(type='FCNMaskHead', num_classes=1, class_agnostic=True), False),
        ('mask_head', dict(type='FCNMaskHead', num_classes=1), True),
        ('backbone', dict(type='ResNet', num_classes=1000), False),
        ('bbox_head', dict(num_classes=4, loss_cls=dict(type='SeesawLoss', num_classes=9)), False),
    ],
)
def test_only_heads_of_the_data_have_its_number_of_classes(place, node, refused):
    assert bool(list(wrong_num_classes({place: node}, 4, 'here'))) == refused


def test_weights_that_mmseg_can_not_average(root):
    """With weights it fails for all pixels, or, in the original release, for ignored ones."""
    cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'))
    cfg.model.decode_head.loss_decode = dict(type=CE, class_weight=[1.0] * 4, avg_non_ignore=True)
    [notice] = check_losses(Plan(cfg, ['train']))
    assert re.search('fails .* IndexError', notice.text)


@MODELS.register_module()
class CountingLoss(nn.Module):
    """A user's own that can't ignore, as mmseg's cross entropy with weights before 1.3."""

    def forward(self, logits, labels, **_):
        counts = logits.new_tensor([1.0] * logits.shape[1])
        return (logits.mean(1) * counts[labels]).mean()


def test_a_loss_that_fails_for_ignored_pixels_alone_is_a_warning(root):
    cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'))
    cfg.model.decode_head.loss_decode = dict(type='CountingLoss')
    [notice] = check_losses(Plan(cfg, ['train']))
    assert notice.level == logging.WARNING
    assert 'fails at the first pixel that is ignored' in notice.text
    assert 'model.decode_head.ignore_index=255' in notice.text
