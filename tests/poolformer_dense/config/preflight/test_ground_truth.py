"""Evaluators that take the ground truth from the pipeline."""

from __future__ import annotations

import copy

import pytest
from mmengine.config import Config

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight.ground_truth import check_ground_truth
from poolformer_dense.config.preflight.plan import Plan
from poolformer_dense.measure.shapes import CLASSES


@pytest.fixture(scope='module')
def detector(root) -> Config:
    return load_config(str(root / 'configs/demo/retinanet_poolformer_s12.py'))


@pytest.fixture
def notices(detector):
    """The notices on a validation; `dataset` and `evaluator` override the config's."""

    def check(evaluator: dict, **dataset) -> list[str]:
        cfg = copy.deepcopy(detector)
        cfg.val_evaluator = evaluator
        cfg.val_dataloader.dataset = {**cfg.val_dataloader.dataset, **dataset}
        return [notice.text for notice in check_ground_truth(Plan(cfg, ['val']))]

    return check


RESIZE = dict(type='Resize', scale=(128, 128), keep_ratio=True)
OBJECTS = dict(type='LoadAnnotations', with_bbox=True)


@pytest.mark.parametrize(
    ('pipeline', 'told'),
    [
        ([RESIZE, OBJECTS], ''),
        ([RESIZE], 'has no LoadAnnotations'),
        ([OBJECTS, RESIZE], 'before Resize'),
        ([dict(RESIZE, type='mmdet.Resize'), OBJECTS], ''),
    ],
)
def test_voc_metric_needs_objects_of_the_original_size(notices, pipeline, told):
    found = notices(dict(type='VOCMetric'), pipeline=pipeline)
    assert len(found) == bool(told)
    assert not told or told in found[0]
    # CocoMetric reads its own file
    assert notices(dict(type='CocoMetric', ann_file='a.json'), pipeline=pipeline) == []


def test_coco_metric_without_a_file_needs_instances(notices):
    (found,) = notices(dict(type='CocoMetric'))
    assert "needs 'instances' among the meta_keys" in found
    packing = dict(type='PackDetInputs', meta_keys=('img_id', 'instances'))
    assert notices(dict(type='CocoMetric'), pipeline=[RESIZE, OBJECTS, packing]) == []


def test_objects_in_xml_are_not_evaluated_by_a_file(notices):
    own = dict(type='XMLDataset', pipeline=[RESIZE, OBJECTS])
    (found,) = notices(dict(type='CocoMetric', ann_file='a.json'), **own)
    assert 'val_evaluator (CocoMetric) reads a.json' in found
    assert "type='VOCMetric'" in found
    assert notices(dict(type='VOCMetric'), **own) == []


@pytest.mark.parametrize(
    ('kind', 'folder', 'classes', 'count'),
    [
        ('VOCDataset', 'VOCdevkit/VOC2007/', CLASSES, 1),
        ('VOCDataset', 'VOCdevkit/mine/', CLASSES, 0),
        ('VOCDataset', 'VOCdevkit/VOC2012/', None, 0),
        ('XMLDataset', 'VOCdevkit/VOC2007/', CLASSES, 0),
    ],
)
def test_other_names_in_the_table_are_told(notices, kind, folder, classes, count):
    own = dict(type=kind, metainfo=None, data_prefix=dict(sub_data_root=folder))
    own |= dict(metainfo=dict(classes=classes)) if classes else {}
    found = notices(dict(type='VOCMetric'), **own)
    assert len(found) == count
    assert all('XMLDataset' in text for text in found)
