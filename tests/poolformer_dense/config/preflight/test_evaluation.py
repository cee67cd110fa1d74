"""An evaluator compares predictions with the objects of the very images that were predicted."""

from __future__ import annotations

import copy
import shutil

import pytest

from poolformer_dense.config.preflight import check_run
from poolformer_dense.errors import UserError


@pytest.fixture
def joined(detection, shapes):
    """Validation on a concatenation of the validation and the training images."""

    def make(**evaluator):
        cfg = detection()
        member = cfg.val_dataloader.dataset
        other = copy.deepcopy(cfg.train_dataloader.dataset)
        other.update(pipeline=member.pipeline, test_mode=True)
        cfg.val_dataloader.dataset = dict(type='ConcatDataset', datasets=[member, other])
        cfg.val_evaluator = evaluator
        return cfg

    return make


def _file(shapes, split):
    return str(shapes / f'coco/annotations/instances_{split}2017.json')


@pytest.mark.parametrize('split', ['val', 'test'])
def test_the_evaluator_reads_another_file(detection, rewritten, split):
    path = rewritten(lambda content: content['annotations'].pop())
    cfg = detection(**{f'{split}_dataloader.dataset.ann_file': str(path)})
    with pytest.raises(
        UserError,
        match=rf'{split}_evaluator.ann_file is \S+val2017.json, and {split}_dataloader.dataset '
        rf'reads .*--cfg-options {split}_evaluator.ann_file={path}',
    ):
        check_run(cfg, [split])


def test_a_copy_or_a_link_is_the_same_file(detection, shapes, tmp_path):
    for name in ('copy.json', 'link.json'):
        path = tmp_path / name
        if name == 'copy.json':
            shutil.copy(_file(shapes, 'val'), path)
        else:
            path.symlink_to(_file(shapes, 'val'))
        check_run(detection(**{'val_evaluator.ann_file': str(path)}), ['val'])


def test_each_of_several_evaluators(detection, shapes):
    cfg = detection()
    right = cfg.val_evaluator
    cfg.val_evaluator = [right, dict(type='CocoMetric', ann_file=_file(shapes, 'train'))]
    with pytest.raises(UserError, match=r'val_evaluator\.1\.ann_file is \S+train2017\.json, and'):
        check_run(cfg, ['val'])


def test_several_files_in_one_evaluation(joined, shapes):
    one = dict(type='CocoMetric', ann_file=_file(shapes, 'val'))
    with pytest.raises(UserError, match=r'data sets have 2 .*MultiDatasetsEvaluator.*merge'):
        check_run(joined(**one), ['val'])
    several = dict(type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'])
    other = dict(type='CocoMetric', ann_file=_file(shapes, 'train'))
    check_run(joined(**several, metrics=[one, other]), ['val'])
    with pytest.raises(UserError, match=r'val_evaluator\.metrics\.0\.ann_file is \S+train2017'):
        check_run(joined(**several, metrics=[other, one]), ['val'])


def test_overlapping_image_ids(joined):
    with pytest.raises(UserError, match=r'4 image ids, e\.g\. 1, are in .*\.0 and in .*\.1:'):
        check_run(joined(type='CocoMetric'), ['val'])
