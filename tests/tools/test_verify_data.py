"""The tool as a user runs it: exit codes, the table, the cleaned file."""

from __future__ import annotations

import json
import re
import shutil

import pytest


@pytest.fixture
def coco(shapes, tmp_path):
    """Data with three faults."""
    folder = shutil.copytree(shapes / 'coco', tmp_path / 'coco')
    path = folder / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'][2]['bbox'] = [5, 5, 0, 9]
    content['annotations'][4]['bbox'][0] = float('nan')
    path.write_text(json.dumps(content))
    (folder / 'val2017/000000000002.jpg').write_bytes(b'')
    return folder


def test_faults_are_a_table_and_a_cleaned_file_has_none(run, root, coco, tmp_path):
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    done = run(
        'verify_data.py', config, '--fix', 'fixed', '--cfg-options', f'data_root={coco}',
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert re.search(
        r'train +NaN or infinite +error +1  annotation 5 \(image \d\): bbox is \[nan', done.stdout
    )
    assert re.search(r'train +box of no area +warning +1  annotation 3 \(image', done.stdout)
    assert re.search(
        r'val, test +unreadable image +error +1  \S+/val2017/000000000002\.jpg', done.stdout
    )
    assert 'errors: 2, warnings: 1' in done.stdout
    assert 'annotations: 1 dropped (box of no area)' in done.stdout
    options = re.findall(r'use it with --cfg-options (.*)', done.stdout)
    assert len(options) == 2
    done = run(
        'verify_data.py', config, '--cfg-options', f'data_root={coco}',
        *' '.join(options).split(), cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith('no faults\n')


def test_data_that_is_not_there_is_one_line(run, root, tmp_path):
    config = root / 'configs/demo/fpn_poolformer_s12.py'
    done = run('verify_data.py', config, '--cfg-options', 'data_root=none', cwd=tmp_path)
    assert done.returncode == 2
    assert 'no data at' in done.stderr.splitlines()[-1]
    assert done.stdout == ''


def test_training_refuses_errors_in_one_line(run, root, coco, tmp_path):
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    done = run('train.py', config, '--cfg-options', f'data_root={coco}', cwd=tmp_path)
    assert done.returncode == 2
    assert re.fullmatch(
        r'error: \S+instances_train2017\.json \(train\) has errors: 1, first NaN or infinite: '
        r'annotation 5 .*, run tools/verify_data\.py \S+retinanet_poolformer_s12\.py',
        done.stderr.splitlines()[-1],
    )


def test_data_of_an_unknown_type_is_not_verified(run, root, shapes, tmp_path):
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    done = run(
        'verify_data.py', config, '--cfg-options', f'data_root={shapes}/coco',
        'train_dataloader.dataset.type=LVISV1Dataset', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert 'not verified, the type is not known here: train_dataloader.dataset' in done.stdout
    assert 'no faults' not in done.stdout
