"""The unlabelled label is one in losses, data, padding and evaluators."""

from __future__ import annotations

import logging
import re

import pytest

from poolformer_dense.config.preflight.unlabelled import check_unlabelled

HEAD = 'model.decode_head.ignore_index'
PAD = 'model.data_preprocessor.seg_pad_val'
EVALUATOR = 'val_evaluator.ignore_index'
TEST = 'test_evaluator.ignore_index'
LOSS = 'model.decode_head.loss_decode'
SIZE = 'model.data_preprocessor.size'
RATIO = 'train_dataloader.dataset.pipeline.2.ratio_range'
CROP = 'train_dataloader.dataset.pipeline.3'
SPLITS = ('train', 'val', 'test')
# The demo's data turn 0 into 255; these keep it as a class, so there are five.
PLAIN = {
    f'{split}_dataloader.dataset.{key}': value
    for split in SPLITS
    for key, value in dict(
        reduce_zero_label=False,
        metainfo=dict(classes=tuple('abcde'), palette=[(0, 0, 0)] * 5),
    ).items()
} | {'model.decode_head.num_classes': 5}
ZERO = {HEAD: 0, PAD: 0, EVALUATOR: 0, TEST: 0, f'{CROP}.ignore_index': 0}
ROTATE = dict(type='RandomRotate', prob=0.5, degree=10)


@pytest.mark.parametrize(
    'overrides',
    [
        {},
        PLAIN,
        PLAIN | ZERO,
        PLAIN | ZERO | {HEAD: 4, PAD: 4, EVALUATOR: 4, TEST: 4, f'{CROP}.ignore_index': 4},
        PLAIN | ZERO | {HEAD: 9, PAD: 9, EVALUATOR: 9, TEST: 9, f'{CROP}.ignore_index': 9},
        PLAIN | {HEAD: -100, PAD: 0, f'{CROP}.cat_max_ratio': 1.0},  # no label is left out
        PLAIN | ZERO | {LOSS: [dict(type='DiceLoss', ignore_index=0)]},
        PLAIN
        | ZERO
        | {HEAD: 9, PAD: 9, EVALUATOR: 9, TEST: 9, f'{CROP}.ignore_index': 9}
        | {LOSS: [dict(type='DiceLoss')]},
        PLAIN | ZERO | {f'{CROP}.ignore_index': 255, f'{CROP}.cat_max_ratio': 1.0},
    ],
)
def test_one_label_is_left_out_everywhere(plan, overrides):
    found = [n.text for n in check_unlabelled(plan(overrides)) if 'as class 0' not in n.text]
    assert found == []


@pytest.mark.parametrize(
    ('overrides', 'splits', 'level', 'said'),
    [
        # The evaluator counts what training leaves out: a class, or no class.
        (ZERO | {EVALUATOR: 255}, ['val'], 'ERROR', f'{EVALUATOR}=255, but {HEAD}=0'),
        (ZERO | {TEST: 255}, ['test'], 'ERROR', f'--cfg-options {TEST}=0'),
        ({HEAD: 9, PAD: 9}, ['val'], 'ERROR', f'{EVALUATOR}=255, but {HEAD}=9'),
        ({EVALUATOR: 9}, ['val'], 'ERROR', f'--cfg-options {EVALUATOR}=255'),
        ({EVALUATOR: 0}, ['val'], 'WARNING', 'its own IoU is 0 and lowers the mean'),
        # Padding that no loss leaves out.
        (
            ZERO | {PAD: 255, RATIO: (0.5, 1.5)},
            ['train'],
            'ERROR',
            f'{PAD}=255, .*Target 255 is out of.* {PAD}=0',
        ),
        ({PAD: 7, SIZE: (512, 512)}, ['train'], 'ERROR', f'{PAD}=7, but {HEAD}=255 and there are'),
        # Whether an image is smaller than its crop can't be told from the config.
        (ZERO | {PAD: 255}, ['train'], 'WARNING', f'{PAD}=255, but {HEAD}=0'),
        ({PAD: 0}, ['train'], 'WARNING', f'{PAD}=0 trains padding as class 0'),
        (ZERO | {f'{CROP}.ignore_index': 255}, ['train'], 'WARNING', f'{CROP}.ignore_index=255'),
        # The losses' own.
        (ZERO | {LOSS: [dict(type='DiceLoss')]}, ['test'], 'ERROR', f'{LOSS}.0.ignore_index=255'),
        (
            {LOSS: [dict(type='TverskyLoss', ignore_index=9)]},
            ['train'],
            'ERROR',
            f'{LOSS}.0.ignore_index=9, but {HEAD}=255',
        ),
    ],
)
def test_labels_that_disagree(plan, overrides, splits, level, said):
    [notice] = check_unlabelled(plan(PLAIN | overrides, splits))
    assert logging.getLevelName(notice.level) == level
    assert re.search(said, notice.text), notice.text
    assert '\n' not in notice.text


@pytest.mark.parametrize(
    ('step', 'found'),
    [
        (ROTATE, ['pipeline.4.seg_pad_val=255']),
        (dict(ROTATE, seg_pad_val=0), []),
        (dict(type='Pad', size=(96, 96)), ['pipeline.4.pad_val.seg=255']),
        (dict(type='Pad', size=(96, 96), pad_val=dict(img=0, seg=0)), []),
        (dict(type='Pad', size=(96, 96), pad_val=dict(img=0)), ['pipeline.4.pad_val.seg=255']),
        (dict(type='RandomCutOut', prob=0.5, n_holes=1, cutout_shape=(4, 4)), []),
    ],
)
def test_steps_that_fill_label_maps(plan, step, found):
    texts = [notice.text for notice in check_unlabelled(plan(PLAIN | ZERO, ['train'], [step]))]
    assert [text.partition(',')[0].rpartition('dataset.')[2] for text in texts] == found


@pytest.mark.parametrize(
    ('overrides', 'said'),
    [
        ({HEAD: 0, PAD: 0}, f'train_dataloader.dataset: reduce_zero_label=True .*{HEAD}=255'),
        ({EVALUATOR: 0}, f'val_dataloader.dataset: reduce_zero_label=True .*{EVALUATOR}=255'),
    ],
)
def test_reduced_labels_are_255(plan, overrides, said):
    texts = [notice.text for notice in check_unlabelled(plan(overrides))]
    assert any(re.search(said, text) for text in texts), texts


def test_an_evaluator_that_reduces_no_label(plan):
    made = plan({})
    made.cfg.val_evaluator.reduce_zero_label = True
    assert not list(check_unlabelled(made))
    made.cfg.val_evaluator.reduce_zero_label = False
    [notice] = check_unlabelled(made)
    assert 'reduce_zero_label=False has no effect: the data set decides' in notice.text


def test_maps_side_by_side_are_read_in_one_way(plan):
    [notice] = check_unlabelled(plan({'val_dataloader.dataset.reduce_zero_label': False}))
    assert re.search(
        'val_data.*reduce_zero_label=False, but train_data.*zero_label=True', notice.text
    )
    elsewhere = 'val_dataloader.dataset.data_prefix.seg_map_path'
    apart = {elsewhere: 'images/validation', 'val_dataloader.dataset.reduce_zero_label': False}
    assert not list(check_unlabelled(plan(apart)))


def test_heads_agree(plan):
    made = plan(PLAIN)
    head = made.cfg.model.decode_head.to_dict()
    made.cfg.model.auxiliary_head = [head | dict(ignore_index=0)]
    [notice] = check_unlabelled(made)
    assert notice.text.startswith('model.auxiliary_head.0.ignore_index=0, but model.decode_head.')
    # A head of another task, as STDC's for boundaries, has labels of its own.
    made.cfg.model.auxiliary_head = [head | dict(ignore_index=0, num_classes=2)]
    assert not list(check_unlabelled(made))
