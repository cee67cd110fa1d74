"""docs/your_data.md, on drawn images in the places that it names, at half of its scale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from backbones import PoolFormer
from backbones.checkpoints import to_layout
from poolformer_dense.config.load import load_config
from poolformer_dense.measure.shapes import write_ade20k, write_coco
from tests.drawn import write_voc, write_yolo


@pytest.fixture(scope='module')
def page(code_blocks) -> list[tuple[str, str]]:
    blocks = code_blocks('your_data.md')
    assert any('(640, 640)' in text for _, text in blocks)
    return [(language, text.replace('(640, 640)', '(320, 320)')) for language, text in blocks]


@pytest.fixture(scope='module')
def weights(tmp_path_factory) -> Path:
    """A mirror of the released weights, whose file has random ones of their names."""
    folder = tmp_path_factory.mktemp('weights')
    state_dict = to_layout(PoolFormer('s12').state_dict(), 'official')
    torch.save(state_dict, folder / 'poolformer_s12.pth.tar')
    return folder


@pytest.fixture(scope='module')
def copy(copy_project, page, tmp_path_factory) -> Path:
    folder = copy_project(tmp_path_factory.mktemp('docs') / 'project', page)
    drawn = tmp_path_factory.mktemp('drawn')
    write_coco(drawn / 'coco', num_train=8, num_val=4)
    write_ade20k(drawn / 'ade', num_train=8, num_val=4)
    write_voc(folder / 'data/voc', num_train=8, num_val=4)
    write_yolo(folder / 'data/yolo', num_train=8, num_val=4)
    for ours, theirs in (('train', 'train2017'), ('val', 'val2017')):
        shutil.copytree(drawn / 'coco' / theirs, folder / 'data/mine/images' / ours)
        shutil.copy(
            drawn / f'coco/annotations/instances_{theirs}.json', folder / f'data/mine/{ours}.json'
        )
    for ours, theirs in (('train', 'training'), ('val', 'validation')):
        shutil.copytree(drawn / 'ade/images' / theirs, folder / 'data/scenes/images' / ours)
        masks = folder / 'data/scenes/masks' / ours
        masks.mkdir(parents=True)
        for path in (drawn / 'ade/annotations' / theirs).iterdir():
            label_map = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            # 0, not labelled, becomes 255 by going round
            cv2.imwrite(str(masks / path.name), label_map - np.uint8(1))
    return folder


@pytest.fixture(scope='module')
def commands(page, copy, weights, follow) -> Callable[[int], str]:
    """Follow the n-th block of commands, which must succeed; return what it printed."""
    blocks = [text for language, text in page if language == 'sh']

    def run(n: int) -> str:
        done = follow(blocks[n], copy, {'POOLFORMER_WEIGHTS': str(weights)})
        printed = ''.join(one.stdout + one.stderr for one in done)
        assert done[-1].returncode == 0, printed
        return printed

    return run


def test_detector_is_checked_drawn_and_tried(commands, copy):
    assert 'no faults' in commands(0).lower()
    assert list((copy / 'work_dirs/pictures').rglob('*.jpg'))
    printed = commands(1)
    assert 'Epoch(val) [1][4/4]' in printed
    assert (copy / 'work_dirs/trial/epoch_1.pth').is_file()


def test_detector_of_voc_is_checked_drawn_and_tried(commands):
    printed = commands(4)
    assert 'no faults' in printed
    assert 'pascal_voc/mAP' in printed


@pytest.mark.parametrize(('first', 'kind'), [(5, 'voc'), (8, 'yolo')])
def test_converted_data_is_checked(commands, copy, first, kind):
    assert f'data/{kind}/coco/train.json: 8 images' in commands(first)
    assert 'no faults' in commands(first + 1)


@pytest.mark.slow
@pytest.mark.parametrize('first', [5, 8])
def test_a_detector_of_converted_data_is_tried(commands, copy, first):
    for out in (copy / 'data').glob('*/coco'):
        shutil.rmtree(out)
    commands(first)
    assert 'Epoch(val) [1][4/4]' in commands(first + 2)


def test_the_longer_schedule_ends_with_the_training(copy):
    cfg = load_config(
        str(copy / 'configs/my_longer_detector.py'), {'model.backbone.init_cfg': None}
    )
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_epochs == 60
    assert cfg.param_scheduler[0].end == 500
    assert cfg.model.backbone.init_cfg is None


def test_segmentor_is_checked_drawn_and_tried(commands, copy):
    printed = commands(11)
    assert 'Iter(val) [4/4]' in printed
    assert (copy / 'work_dirs/trial/iter_2.pth').is_file()


@pytest.mark.slow  # 12 epochs
def test_detector_is_trained_tested_and_used(commands, copy):
    commands(2)
    printed = commands(3)
    assert 'Evaluating bbox' in printed  # 48 steps from random weights find nothing yet
    assert len(list((copy / 'work_dirs/predictions').rglob('*.jpg'))) == 4


@pytest.mark.slow
def test_segmentor_is_trained_tested_and_used(copy_project, copy, page, weights, follow, tmp_path):
    """With 8 steps in the place of 4000: the page's other words are as they stand."""
    shorter = [(language, text.replace('4000', '8').replace('400', '8')) for language, text in page]
    folder = copy_project(tmp_path / 'project', shorter)
    shutil.copytree(copy / 'data', folder / 'data')
    blocks = [text for language, text in shorter if language == 'sh']
    for block in blocks[12:]:
        done = follow(block, folder, {'POOLFORMER_WEIGHTS': str(weights)})
        assert done[-1].returncode == 0, done[-1].stdout + done[-1].stderr
    assert len(list((folder / 'work_dirs/predictions').rglob('*.png'))) >= 4
