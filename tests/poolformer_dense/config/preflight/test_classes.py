"""Classes that mean different things in different places are one line."""

from __future__ import annotations

import copy
import json

import pytest
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS

from poolformer_dense.config.preflight import check_run
from poolformer_dense.data.categories import read_categories
from poolformer_dense.errors import UserError

SPLITS = ['train', 'val', 'test']


class OtherCOCO(COCO):
    """An API of a user's own."""


@DATASETS.register_module()
class OwnOrderDataset(CocoDataset):
    """Reads in a way of its own, so its labels are in the order of the file."""

    COCOAPI = OtherCOCO


def _names(content, *names):
    for category, name in zip(content['categories'], names, strict=True):
        category['name'] = name


def test_categories_that_differ(detection, rewritten):
    path = rewritten(lambda content: _names(content, 'disc', 'rectangle', 'triangle'))
    cfg = detection(**{'val_dataloader.dataset.ann_file': str(path)})
    with pytest.raises(
        UserError,
        match=r"1 of the 3 classes .*\(square\).*'disc', 'rectangle', 'tri.*num_classes=3",
    ):
        check_run(cfg, ['val'])


def test_categories_in_another_order_are_fine(detection, rewritten):
    path = rewritten(lambda content: content['categories'].reverse())
    file = {'val_dataloader.dataset.ann_file': str(path), 'val_evaluator.ann_file': str(path)}
    check_run(detection(**file), SPLITS)


def test_a_type_that_follows_the_file_needs_its_order(detection, rewritten):
    path = rewritten(lambda content: content['categories'].reverse())
    file = {'val_dataloader.dataset.ann_file': str(path), 'val_evaluator.ann_file': str(path)}
    cfg = detection(**file)
    cfg.val_dataloader.dataset.type = 'OwnOrderDataset'
    with pytest.raises(UserError, match=r'OwnOrderDataset: labels follow .*"categories" in .*chan'):
        check_run(cfg, ['val'])
    cfg = detection(**file)
    cfg.val_evaluator.type = 'OVCocoMetric'
    with pytest.raises(UserError, match=r'OVCocoMetric: labels follow .*"categories" in .*changed'):
        check_run(cfg, ['val'])


@pytest.mark.parametrize('split', ['val', 'test'])
@pytest.mark.parametrize('run', [['train', 'val'], ['test']])
def test_the_same_classes_in_another_order(detection, segmentation, split, run):
    for cfg in (detection(), segmentation()):
        metainfo = copy.deepcopy(cfg[f'{split}_dataloader'].dataset.metainfo)
        metainfo.classes = metainfo.classes[::-1]
        cfg[f'{split}_dataloader'].dataset.metainfo = metainfo
        with pytest.raises(
            UserError,
            match=rf'{split}_dataloader.dataset has the same classes in another order \(tri\S+, '
            r'.*than train_dataloader.dataset \(.*give both the same metainfo.classes',
        ):
            check_run(cfg, run)


def test_other_classes(detection, logged):
    cfg = detection()
    cfg.val_dataloader.dataset.metainfo = dict(classes=('disc', 'square'))
    cfg.test_dataloader = cfg.val_dataloader
    with pytest.raises(UserError, match=r'val_dataloader.dataset has other classes \(disc, square'):
        check_run(cfg, ['train', 'val'])
    # A test alone may be of other data than the training that the config describes.
    cfg.model.bbox_head.num_classes = 2
    check_run(cfg, ['test'])
    assert any('has other classes' in line for line in logged)


def test_members_of_a_concatenation(detection):
    cfg = detection()
    member = cfg.train_dataloader.dataset
    other = copy.deepcopy(member)
    other.metainfo = dict(classes=('square', 'disc', 'triangle'))
    cfg.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[member, other])
    with pytest.raises(UserError, match=r'dataset\.datasets\.1 has the same classes in another'):
        check_run(cfg, ['train'])


@pytest.mark.parametrize(
    ('metainfo', 'message'),
    [
        (dict(classes='disc'), r"metainfo.classes is the text 'disc'.*comma, \('disc',\)"),
        (dict(classes=('disc', '')), r"has '' among its names"),
        (dict(classes=(1, 2)), 'has 1 among its names'),
        (dict(classes=('disc', 'disc')), 'has a name several times: disc'),
        (dict(classes=()), 'metainfo.classes is empty'),
        (dict(CLASSES=('disc',)), r'metainfo.CLASSES is ignored: the name is classes'),
        (dict(classes={'disc': 1}), 'it is a tuple of names'),
    ],
)
def test_what_is_no_list_of_names(detection, metainfo, message):
    cfg = detection()
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = metainfo
    with pytest.raises(UserError, match=message) as caught:
        check_run(cfg, ['test'])
    assert '\n' not in str(caught.value)


def test_text_on_the_command_line(detection):
    cfg = detection(**{'test_dataloader.dataset.metainfo.classes': 'disc'})
    with pytest.raises(UserError, match=r"test_dataloader\.\S+classes is the text 'disc'"):
        check_run(cfg, ['test'])


def test_a_file_of_classes(detection, tmp_path):
    path = tmp_path / 'names.txt'
    path.write_text('disc\nsquare\ntriangle\n')
    cfg = detection()
    for split in SPLITS:
        cfg[f'{split}_dataloader'].dataset.metainfo = dict(classes=str(path))
    check_run(cfg, SPLITS)
    path.write_text('disc\nsquare\ntriangle\n\n')
    with pytest.raises(UserError, match=r"has '' among its names"):
        check_run(cfg, SPLITS)


def test_a_category_of_two_ids(detection, rewritten):
    # As Roboflow exports a class and the supercategory of its name.
    path = rewritten(lambda content: content['categories'].insert(0, dict(id=0, name='disc')))
    cfg = detection(**{'val_dataloader.dataset.ann_file': str(path)})
    with pytest.raises(UserError, match=r'several times.*\(disc\).*verify_data.py CONFIG --fix'):
        check_run(cfg, ['val'])


def test_more_categories_than_the_config_are_fine(detection, rewritten, logged):
    path = rewritten(lambda content: content['categories'].append(dict(id=9, name='star')))
    file = {'val_dataloader.dataset.ann_file': str(path), 'val_evaluator.ann_file': str(path)}
    check_run(detection(**file), ['val'])
    assert [line for line in logged if line.endswith('left out by the config: star')]


@pytest.mark.parametrize('separators', [(',', ':'), (', ', ' : ')])
@pytest.mark.parametrize('nested', ['no', 'first', 'last', 'list'])
def test_categories_are_read_wherever_they_stand(tmp_path, separators, nested):
    path = tmp_path / 'a.json'
    other = [dict(id=1, name='no')] if nested == 'list' else {'a': ['x']}
    info = {} if nested == 'no' else dict(info=dict(categories=other))
    lists = dict(categories=[dict(id=2, name='käse')], images=[dict(id=1)], annotations=[])
    content = lists | info if nested == 'last' else info | lists
    path.write_text(json.dumps(content, separators=separators, ensure_ascii=False))
    assert read_categories(path) == ['käse']


def test_a_long_list_of_categories(tmp_path):
    path = tmp_path / 'a.json'
    names = [f'ä{i}' * 40 for i in range(20000)]
    categories = [dict(id=i, name=name) for i, name in enumerate(names)]
    path.write_text(json.dumps(dict(categories=categories), ensure_ascii=False))
    assert path.stat().st_size > 1 << 20
    assert read_categories(path) == names
