"""The stock configs on other data, with nothing but --cfg-options; the loss falls."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from mmdet.datasets import CocoDataset

from poolformer_dense.measure.shapes import write_coco


@pytest.fixture(scope='module')
def coco_twin(tmp_path_factory) -> Path:
    """Drawn images under COCO's own 80 categories."""
    folder = tmp_path_factory.mktemp('coco_twin')
    write_coco(folder, num_train=16, num_val=4, categories=CocoDataset.METAINFO['classes'])
    return folder


def _losses(work_dir: Path) -> list[float]:
    [scalars] = work_dir.glob('*/vis_data/scalars.json')
    return [
        row['loss'] for row in map(json.loads, scalars.read_text().splitlines()) if 'loss' in row
    ]


def _train_detector(run, root, work_dir, name, data, size, epochs):
    scale = f'scale=({size},{size})'
    config = root / f'configs/{name}.py'
    options = [
        '--cfg-options', f'data_root={data}', 'model.backbone.init_cfg=None',
        f'train_dataloader.dataset.pipeline.2.{scale}',
        f'val_dataloader.dataset.pipeline.1.{scale}', f'test_dataloader.dataset.pipeline.1.{scale}',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'train_dataloader.batch_size=4', 'param_scheduler.0.end=10',
        f'train_cfg.max_epochs={epochs}', f'train_cfg.val_interval={epochs}',
        'default_hooks.logger.interval=1', 'randomness.seed=0', 'log_processor.window_size=1',
    ]  # fmt: skip
    done = run('train.py', config, '--work-dir', work_dir, *options, cwd=work_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'Evaluating bbox' in done.stdout
    assert 'Average Precision' in done.stdout or 'No AP: no detection' in done.stdout
    losses = _losses(work_dir)
    assert len(losses) >= 12
    quarter = len(losses) // 4
    assert np.mean(losses[-quarter:]) < 0.95 * np.mean(losses[:quarter])


def test_retinanet_on_a_twin_of_coco(run, root, coco_twin, tmp_path):
    _train_detector(run, root, tmp_path, 'retinanet_poolformer_s12', coco_twin, 128, epochs=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'epochs'), [('retinanet_poolformer_s12', 3), ('mask_rcnn_poolformer_s12', 1)]
)
def test_detectors_on_real_photographs(run, root, tiny_coco, tmp_path, name, epochs):
    _train_detector(run, root, tmp_path, name, tiny_coco, 256, epochs)


def test_semantic_fpn_on_label_maps(run, root, shapes, tmp_path):
    done = run(
        'train.py', root / 'configs/fpn_poolformer_s12.py', '--work-dir', tmp_path,
        '--cfg-options', f'data_root={shapes}/ade', 'model.backbone.init_cfg=None',
        'model.data_preprocessor.size=(96,96)',
        'train_dataloader.dataset.pipeline.2.scale=(512,128)',
        'train_dataloader.dataset.pipeline.3.crop_size=(96,96)',
        'val_dataloader.dataset.pipeline.1.scale=(512,128)',
        'train_dataloader.num_workers=0', 'train_dataloader.persistent_workers=False',
        'train_cfg.max_iters=16', 'train_cfg.val_interval=16',
        'default_hooks.logger.interval=1', 'randomness.seed=0', 'log_processor.window_size=1',
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'mIoU' in done.stdout
    losses = _losses(tmp_path)
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
