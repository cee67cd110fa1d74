"""tools/infer.py as a user runs it."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from poolformer_dense.config.load import load_config
from poolformer_dense.measure.shapes import draw_scene


@pytest.fixture(scope='module')
def checkpoints(root, tmp_path_factory):
    """Weights of the demo's detector and segmentor as their constructors leave them."""
    folder = tmp_path_factory.mktemp('checkpoints')
    paths = {}
    for head in ('retinanet', 'fpn'):
        cfg = load_config(str(root / f'configs/demo/{head}_poolformer_s12.py'))
        paths[head] = folder / f'{head}.pth'
        torch.save(MODELS.build(cfg.model).state_dict(), paths[head])
    return paths


def _draw(folder, count, broken):
    """Images in two folders with the same names, one of a pixel; and broken ones of four kinds."""
    for i in range(count - 1):
        path = folder / 'ab'[i % 2] / f'{i // 2:03d}.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(path), draw_scene((i,)).image)
    assert cv2.imwrite(str(folder / 'pixel.png'), np.full((1, 1, 3), 99, np.uint8))
    data = (folder / 'a/000.jpg').read_bytes()
    kinds = [b'', b'no image', data[: len(data) // 2], data[:30]]
    for i in range(broken):
        (folder / f'broken{i}.jpg').write_bytes(kinds[i % 4])


@pytest.mark.parametrize(
    ('images', 'broken'), [(8, 4), pytest.param(190, 10, marks=pytest.mark.slow)]
)
def test_broken_images_are_named_and_the_others_predicted(
    run, root, checkpoints, tmp_path, images, broken
):
    _draw(tmp_path / 'images', images, broken)
    done = run(
        'infer.py', root / 'configs/demo/retinanet_poolformer_s12.py', checkpoints['retinanet'],
        'images', '--out', 'out', '--batch', 8, '--fuse', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert f'{images} results in out' in done.stdout
    assert f'{broken} inputs skipped' in done.stdout
    skipped = [line for line in done.stderr.splitlines() if line.startswith('skipped ')]
    assert len(skipped) == broken
    for i in range(broken):
        assert sum(f'images/broken{i}.jpg: ' in line for line in skipped) == 1
    assert 'Traceback' not in done.stderr
    index = json.loads((tmp_path / 'out/images.json').read_text())
    assert len(index['images']) == images
    assert len([p for p in (tmp_path / 'out/pictures').rglob('*') if p.is_file()]) == images


def test_label_maps_of_all_inputs_read(call, root, checkpoints, tmp_path):
    _draw(tmp_path / 'images', 4, 0)
    done = call(
        'infer.py', root / 'configs/demo/fpn_poolformer_s12.py', checkpoints['fpn'],
        'images/*/*.jpg', 'images/pixel.png', '--no-pictures', '--device', 'cpu', '--tile', 80,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    out = tmp_path / 'work_dirs/demo/fpn_poolformer_s12/predictions'
    names = sorted(str(path.relative_to(out)) for path in out.rglob('*.*'))
    labels = [f'labels/{name}.png' for name in ('a/000', 'a/001', 'b/000', 'pixel')]
    assert names == ['classes.json', *labels]


@pytest.mark.parametrize(
    ('head', 'arguments', 'message'),
    [
        ('retinanet', ['gone.jpg'], 'gone.jpg: it does not exist'),
        ('retinanet', ['.'], '.: no image or video is in this folder'),
        ('retinanet', ['.', '--batch', 0], '--batch 0: at least 1'),
        ('retinanet', ['x.jpg', '--device', 'cuda:77'], '--device cuda:77: torch can not use it'),
        ('fpn', ['x.jpg', '--tile', 0], 'tile=0: it is the side'),
        ('fpn', ['x.jpg', '--tile', 64, '--overlap', 1], 'overlap=1.0: it is a part'),
        ('fpn', ['x.jpg', '--overlap', 0.3], 'give --tile SIZE too'),
        ('fpn', ['x.jpg', '--dtype', 'float16', '--device', 'cpu'], 'dtype float16: on a CPU'),
        ('fpn', ['x.jpg', '--score-thr', 0.5], '--score-thr is for detection'),
    ],
)
def test_errors_are_one_line(call, root, checkpoints, tmp_path, head, arguments, message):
    if 'x.jpg' in arguments:
        (tmp_path / 'x.jpg').write_bytes(b'')
    config = root / f'configs/demo/{head}_poolformer_s12.py'
    done = call('infer.py', config, checkpoints[head], *arguments)
    assert done.returncode == 2
    [line] = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert message in line
