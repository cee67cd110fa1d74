"""The tool as a user runs it: what it prints, its exit codes, and that its files are verified."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.drawn import write_voc, write_yolo


@pytest.fixture
def mine(tmp_path) -> Path:
    write_voc(tmp_path / 'voc', 4, 2)
    write_yolo(tmp_path / 'yolo', 4, 2, polygons=True)
    return tmp_path


@pytest.mark.parametrize(('kind', 'source'), [('voc', 'voc'), ('yolo', 'yolo/data.yaml')])
def test_converted_data_has_no_faults(call, run, root, mine, kind, source):
    done = call('convert_data.py', kind, source, f'{kind}/coco')
    assert done.returncode in (None, 0), done.stderr
    assert f'{kind}/coco/train.json: 4 images (0 without objects), ' in done.stdout
    told = re.search(
        r"data_root = '(.*?)', data_prefix = dict\(img=''\),\nann_file = '(.*?)', classes = (.*)\n",
        done.stdout,
    )
    assert told.groups() == (f'{kind}/', 'coco/train.json', "('disc', 'square', 'triangle')")
    masks = kind == 'yolo'
    config = 'mask_rcnn' if masks else 'retinanet'
    splits = [
        f'{split}_dataloader.dataset.{key}'
        for split in ('train', 'val', 'test')
        for key in (
            f'ann_file=coco/{split.replace("test", "val")}.json',
            'data_prefix.img=',
            f'pipeline.{1 if split == "train" else 2}.with_mask={masks}',
        )
    ]
    done = run(
        'verify_data.py', root / f'configs/demo/{config}_poolformer_s12.py', '--cfg-options',
        f'data_root={kind}/', *splits, f'val_evaluator.ann_file={kind}/coco/val.json',
        f'test_evaluator.ann_file={kind}/coco/val.json', cwd=mine,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('no faults\n')


def test_what_can_not_be_converted_is_listed_and_nothing_is_written(call, mine):
    for n in range(4):
        with (mine / f'yolo/labels/train/train_{n}.txt').open('a') as file:
            file.write('7 0.5 0.5 0.1 0.1\n')
    done = call('convert_data.py', 'yolo', 'yolo/data.yaml', 'out', '--examples', 2)
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert re.match(r'\S+train_0\.txt, line \d: class 7 is not among the 3 names', lines[-4])
    assert lines[-2:] == [
        '... 2 more; --examples 0: all',
        'error: 4 things can not be converted, so nothing is written. Correct them, or leave out '
        'these objects and images with --drop',
    ]
    assert not (mine / 'out').exists()
    done = call('convert_data.py', 'yolo', 'yolo/data.yaml', 'out', '--drop')
    assert done.returncode in (None, 0)
    assert 'left out: 4' in done.stdout
    content = json.loads((mine / 'out/train.json').read_text())
    assert {entry['category_id'] for entry in content['annotations']} == {1, 2, 3}
