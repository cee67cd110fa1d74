"""Data that can't be read, or of which nothing is left, is one line before the model is built."""

from __future__ import annotations

import copy

import pytest

from poolformer_dense.config.preflight import check_run
from poolformer_dense.errors import UserError


def _file(shapes, split):
    return str(shapes / f'coco/annotations/instances_{split}2017.json')


def test_no_image_left(detection, rewritten):
    def bare(content):
        content['annotations'].clear()

    path = str(rewritten(bare, 'train', 'bare.json'))
    for overrides, message in (
        (dict(ann_file=path, filter_cfg=dict(filter_empty_gt=True)), r'left: .*_gt \(.* takes 8'),
        (dict(filter_cfg=dict(min_size=500)), r'of 8 images none is left: .*min_size=500 takes 8'),
        (dict(indices=0), r'of 8 images none is left: indices=0 takes 8'),
        (dict(ann_file=path), r'no object of its classes is in its images'),
    ):
        cfg = detection()
        cfg.train_dataloader.dataset.update(overrides)
        with pytest.raises(UserError, match=message) as caught:
            check_run(cfg, ['train'])
        assert '\n' not in str(caught.value)


def test_a_member_without_objects_beside_one_with(detection, rewritten, logged):
    path = rewritten(lambda content: content['annotations'].clear(), 'train')
    cfg = detection()
    member = cfg.train_dataloader.dataset
    other = copy.deepcopy(member)
    other.update(ann_file=str(path), filter_cfg=None)
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[member, other])
    check_run(cfg, ['train'])
    assert any('1 x nothing to learn' in line for line in logged)


def test_a_test_set_without_annotations_is_fine(detection, rewritten, logged):
    path = str(rewritten(lambda content: content.update(annotations=[])))
    file = {'test_dataloader.dataset.ann_file': path, 'test_evaluator.ann_file': path}
    check_run(detection(**file), ['test'])
    assert not any('warnings' in line for line in logged)


@pytest.mark.parametrize('encoding', ['utf-8-sig', 'utf-16'])
def test_encodings_that_pycocotools_does_not_read(detection, shapes, tmp_path, encoding):
    path = tmp_path / 'windows.json'
    with open(_file(shapes, 'val'), encoding='utf-8') as file:
        path.write_text(file.read(), encoding=encoding)
    file = {'val_dataloader.dataset.ann_file': str(path), 'val_evaluator.ann_file': str(path)}
    with pytest.raises(UserError, match=r'encoding: \S+windows\.json: .*without a byte-order mark'):
        check_run(detection(**file), ['val'])
