"""The same class has the same label, whatever the order of the categories in a file."""

from __future__ import annotations

import copy
import json
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
from mmdet.datasets.lvis import LVISV1Dataset
from mmdet.evaluation import CocoMetric, LVISMetric
from mmengine.registry import DATASETS, METRICS
from torch.utils.data import DataLoader

from poolformer_dense.data.label_order import (
    check_order_as_built,
    has_class_order,
    in_class_order,
)
from poolformer_dense.errors import UserError
from poolformer_dense.runner import DenseRunner

CLASSES = ('disc', 'square', 'triangle')


class Subclass(CocoDataset):
    """What a user might write."""

    def filter_data(self) -> list[dict]:
        return super().filter_data()


@pytest.fixture
def shuffled(shapes, tmp_path) -> Path:
    """The drawn validation images; neither order nor ids of the categories are those of names."""
    content = json.loads((shapes / 'coco/annotations/instances_val2017.json').read_text())
    ids = {1: 40, 2: 7, 3: 23}
    for entry in content['annotations']:
        entry['category_id'] = ids[entry['category_id']]
    content['categories'] = [
        dict(id=ids[i], name=CLASSES[i - 1], supercategory='shape') for i in (3, 1, 2)
    ]
    path = tmp_path / 'shuffled.json'
    path.write_text(json.dumps(content))
    return path


def _node(path: Path, kind: object = CocoDataset, classes: tuple = CLASSES, **options) -> dict:
    metainfo = dict(classes=classes)
    node = dict(type=kind, ann_file=str(path), metainfo=metainfo, data_prefix=dict(img=''))
    return node | options


def _build(node):
    return DATASETS.build(in_class_order(node, DATASETS))


def _areas(dataset) -> dict[int, list]:
    """Boxes by label."""
    found: dict[int, list] = {}
    for i in range(len(dataset)):
        for instance in dataset.get_data_info(i)['instances']:
            found.setdefault(instance['bbox_label'], []).append(instance['bbox'])
    return found


def _perfect(dataset) -> list[dict]:
    """Data samples with predictions that are the ground truth."""
    samples = []
    for i in range(len(dataset)):
        info = dataset.get_data_info(i)
        instances = info['instances']
        predicted = dict(
            bboxes=torch.tensor([o['bbox'] for o in instances]).reshape(-1, 4),
            labels=torch.tensor([o['bbox_label'] for o in instances], dtype=torch.long),
            scores=torch.ones(len(instances)),
        )
        size = (info['height'], info['width'])
        samples.append(dict(img_id=info['img_id'], ori_shape=size, pred_instances=predicted))
    return samples


def _evaluate(dataset, path: Path, kind: object = CocoMetric, **options) -> dict:
    node = dict(type=kind, ann_file=str(path), classwise=True, **options)
    metric = METRICS.build(in_class_order(node, METRICS))
    metric.dataset_meta = dataset.metainfo
    metric.process({}, _perfect(dataset))
    return metric.evaluate(len(dataset))


@pytest.mark.parametrize('kind', ['mmdet.CocoDataset', CocoDataset, Subclass])
def test_labels_follow_the_classes(shapes, shuffled, kind):
    plain = DATASETS.build(_node(shapes / 'coco/annotations/instances_val2017.json'))
    assert _areas(_build(_node(shuffled, kind))) == _areas(plain)
    backwards = _areas(_build(_node(shuffled, kind, CLASSES[::-1])))
    assert backwards == {2 - label: boxes for label, boxes in _areas(plain).items()}


@pytest.mark.parametrize('order', [0, 1, 2, 3])
def test_a_perfect_detector_has_ap_1_in_any_order(shuffled, order):
    classes = tuple(random.Random(order).sample(CLASSES, 3))
    numbers = _evaluate(_build(_node(shuffled, classes=classes, test_mode=True)), shuffled)
    assert numbers['coco/bbox_mAP'] == 1


def test_each_class_has_its_own_row_of_the_table(shuffled):
    dataset = _build(_node(shuffled, test_mode=True))
    node = dict(type='mmdet.CocoMetric', ann_file=str(shuffled), classwise=True)
    metric = METRICS.build(in_class_order(node, METRICS))
    metric.dataset_meta = dataset.metainfo
    samples = _perfect(dataset)
    for sample in samples:  # squares are never found
        labels = sample['pred_instances']['labels']
        sample['pred_instances'] = {k: v[labels != 1] for k, v in sample['pred_instances'].items()}
    metric.process({}, samples)
    numbers = metric.evaluate(len(dataset))
    assert [numbers[f'coco/{name}_precision'] for name in CLASSES] == [1, 0, 1]


def test_result_files_have_the_ids_of_the_file(shuffled, tmp_path):
    dataset = _build(_node(shuffled, test_mode=True))
    _evaluate(dataset, shuffled, outfile_prefix=str(tmp_path / 'found'))
    found = json.loads((tmp_path / 'found.bbox.json').read_text())
    truth = json.loads(shuffled.read_text())['annotations']
    pairs = {(f['image_id'], f['category_id']) for f in found}
    assert pairs == {(t['image_id'], t['category_id']) for t in truth}


def test_the_metric_without_a_file_takes_the_labels(shuffled):
    dataset = _build(_node(shuffled, test_mode=True))
    metric = METRICS.build(in_class_order(dict(type='mmdet.CocoMetric'), METRICS))
    metric.dataset_meta = dataset.metainfo
    samples = _perfect(dataset)
    for i, sample in enumerate(samples):
        sample['instances'] = dataset.get_data_info(i)['instances']
    for _ in range(2):  # the second validation of a training
        metric.process({}, samples)
        assert metric.evaluate(len(dataset))['coco/bbox_mAP'] == 1


def test_a_part_of_the_images_is_what_counts(shuffled):
    dataset = _build(_node(shuffled, test_mode=True, indices=2))
    assert _evaluate(dataset, shuffled)['coco/bbox_mAP'] == 1


@pytest.mark.parametrize('wrapped', ['list', 'repeat', 'both'])
def test_wrappers_are_looked_into(shapes, shuffled, wrapped):
    plain = shapes / 'coco/annotations/instances_val2017.json'
    node = dict(type='ConcatDataset', datasets=[_node(plain), _node(shuffled)])
    if wrapped != 'list':
        node = dict(type='RepeatDataset', times=1, dataset=node)
    if wrapped == 'both':
        node = dict(type='mmdet.MultiImageMixDataset', pipeline=[], dataset=node)
    given = copy.deepcopy(node)
    dataset = _build(node)
    assert node == given, 'the config is changed'
    members = dataset.dataset if wrapped == 'both' else dataset
    members = members.dataset if wrapped != 'list' else members
    first, second = members.datasets
    assert _areas(first) == _areas(second)


def test_the_runner_builds_them(shuffled):
    loader = dict(
        batch_size=1, num_workers=0, dataset=_node(shuffled), sampler=dict(type='DefaultSampler')
    )
    labels = _areas(DenseRunner.build_dataloader(loader).dataset)
    assert labels == _areas(_build(_node(shuffled)))
    plain = DATASETS.build(_node(shuffled))
    with pytest.raises(UserError, match=r'CocoDataset, given as an object.*"categories" in \S+sh'):
        DenseRunner.build_dataloader(DataLoader(plain))
    check_order_as_built(_build(_node(shuffled)))


@pytest.mark.parametrize('kind', [CocoDataset, Subclass])
def test_worker_processes_are_given_them(shuffled, kind):
    dataset = _build(_node(shuffled, kind))
    again = pickle.loads(pickle.dumps(dataset))
    assert type(again) is type(dataset)
    assert _areas(again) == _areas(dataset) == _areas(copy.deepcopy(dataset))


@pytest.mark.parametrize('wrong', ['missing', 'twice'])
def test_classes_that_the_file_lacks_or_repeats_are_no_label(shuffled, wrong):
    content = json.loads(shuffled.read_text())
    if wrong == 'missing':
        content['categories'].pop()
    else:
        content['categories'].append(content['categories'][0] | dict(id=99))
    shuffled.write_text(json.dumps(content))
    message = dict(missing=r'does not have 1 of the 3 .*square', twice=r'several times.*triangle')
    with pytest.raises(UserError, match=message[wrong]):
        _build(_node(shuffled))


def test_other_formats_keep_their_own_order():
    assert has_class_order(CocoDataset)
    assert has_class_order(CocoMetric)
    assert not has_class_order(LVISV1Dataset)
    assert not has_class_order(LVISMetric)
    assert not has_class_order(np.ndarray)
