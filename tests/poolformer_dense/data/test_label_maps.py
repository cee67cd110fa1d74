"""What the labels of a few maps tell: each pixel a class or left out, each class in use."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from poolformer_dense.config.datasets import named_sources
from poolformer_dense.config.load import load_config
from poolformer_dense.data.audit import audit

HEAD = 'model.decode_head.ignore_index'
EVALUATOR = 'val_evaluator.ignore_index'


@pytest.fixture
def found(root, tmp_path):
    """Write maps of these labels, and return what an audit finds in them."""

    def look(maps, classes=2, reduce=False, splits=('train', 'val'), quick=True, **overrides):
        for folder in ('images', 'maps'):
            (tmp_path / folder).mkdir(exist_ok=True)
        for i, labels in enumerate(maps):
            label_map = np.resize(np.array(labels, dtype=np.uint8), (8, 8))
            cv2.imwrite(str(tmp_path / f'maps/{i:04d}.png'), label_map)
            cv2.imwrite(str(tmp_path / f'images/{i:04d}.jpg'), np.zeros((8, 8, 3), np.uint8))
        prefix = dict(img_path='images', seg_map_path='maps')
        prefix = overrides.pop('prefix', prefix)
        metainfo = dict(classes=tuple('abcdefgh'[:classes]), palette=[(0, 0, 0)] * classes)
        options = {'data_root': str(tmp_path), 'model.decode_head.num_classes': classes}
        cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'), options | overrides)
        for split in splits:
            node = cfg[f'{split}_dataloader'].dataset
            node.update(data_root=str(tmp_path), metainfo=metainfo, reduce_zero_label=reduce)
            node.pop('data_prefix')
            node.data_prefix = prefix
        results, _ = audit(named_sources(cfg, splits)[0], quick=quick)
        return [(fault.kind, fault.detail) for result in results for fault in result.faults]

    return look


@pytest.mark.parametrize(
    ('maps', 'classes', 'reduce', 'said'),
    [
        ([[0, 255], [0]], 2, False, 'never use b, while 1 of them have 255'),
        ([[0, 255]] * 3, 1, False, 'use no class but a, while 3 of them have 255'),
        ([[0, 1, 255]] * 3, 3, False, 'never use c, while 3 of them have 255'),
        ([[0, 255]] * 3, 8, False, 'never use b, c, d, e, f, '),
        ([[0, 1, 255]] * 3, 2, True, 'never use b, while 3 of them have 255'),
        ([[1, 255]] * 3, 2, False, 'never use a, while 3'),
    ],
)
def test_a_label_that_stands_for_a_class(found, maps, classes, reduce, said):
    [(kind, detail)] = found(maps, classes, reduce)
    assert kind == 'unused class'
    assert said in detail


@pytest.mark.parametrize(
    ('maps', 'classes', 'reduce'),
    [
        ([[0, 1]] * 3, 2, False),
        ([[0, 1, 255]] * 3, 2, False),
        ([[0]] * 3, 2, False),  # no other label that could be the class
        ([[0, 1, 255]] * 3, 8, False),  # of many classes some are rare
        ([[0, 1, 2]] * 3, 2, True),
        ([[0, 1]] * 3, 2, True),  # 0 is said to be unlabelled
    ],
)
def test_labels_that_are_right(found, maps, classes, reduce):
    assert found(maps, classes, reduce) == []


def test_a_rare_class_is_looked_for_before_it_is_missed(found):
    maps = [[0, 255]] * 60
    assert [kind for kind, _ in found(maps)] == ['unused class']
    maps[31] = [0, 1, 255]
    assert found(maps) == []


@pytest.mark.parametrize(
    ('overrides', 'splits', 'outside'),
    [
        ({}, ['train'], True),
        ({HEAD: 7}, ['train'], False),
        ({HEAD: 7}, ['val'], True),  # the evaluator would count it
        ({HEAD: 7, EVALUATOR: 7}, ['train', 'val'], False),
        ({HEAD: None}, ['train'], True),
        ({EVALUATOR: 7}, ['val'], False),
        ({EVALUATOR: 7}, ['train', 'val'], True),
    ],
)
def test_a_label_is_left_out_by_what_reads_it(found, overrides, splits, outside):
    kinds = {kind for kind, _ in found([[0, 1, 7]] * 2, splits=splits, **overrides)}
    assert kinds == ({'label outside classes'} if outside else set())


def test_255_is_a_label_like_others_if_another_is_left_out(found):
    assert 'label outside classes' in dict(found([[0, 1, 255]], splits=['train'], **{HEAD: 0}))
    assert found([[0, 1]], splits=['train'], **{HEAD: 0}) == []


def test_maps_named_nowhere(found):
    faults = found([[0, 1]], splits=['train'], prefix=dict(img_path='images'))
    assert [kind for kind, _ in faults] == ['missing label map']
    assert 'data_prefix.seg_map_path does not say where they are' in faults[0][1]


def test_images_without_maps_are_fine_for_a_pipeline_that_loads_none(found):
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    options = {'val_dataloader.dataset.pipeline': pipeline}
    assert found([[0, 1]], splits=['val'], prefix=dict(img_path='images'), **options) == []
