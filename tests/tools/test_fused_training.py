"""Training with the fused operators is the training without them."""

from __future__ import annotations

import json

import numpy as np
import pytest

from engine.shapes import write_coco

SEEDS = (0, 1, 2)
ITERATIONS = 208  # 13 epochs of 16


@pytest.fixture(scope='module')
def shapes_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes_set')
    write_coco(folder, num_train=64, num_val=32)
    return folder


def _train(run, root, data, work_dir, ops, seed):
    """The loss of each iteration and the final AP."""
    work_dir.mkdir()
    config = work_dir / 'config.py'
    # Layer scales of 0.1 instead of 1e-5: from scratch, the blocks would hardly matter.
    config.write_text(
        f"""
_base_ = '{root}/configs/demo/retinanet_poolformer_s12.py'
sizes = dict(depths=(2, 2, 6, 2), dims=(64, 128, 320, 512))
arch = dict(_delete_=True, layer_scale_init=0.1, **sizes)
model = dict(backbone=dict(arch=arch, ops='{ops}'))
train_cfg = dict(max_epochs=13, val_interval=13)
train_dataloader = dict(num_workers=0, persistent_workers=False)
default_hooks = dict(logger=dict(interval=1))
log_processor = dict(window_size=1)
randomness = dict(seed={seed})
"""
    )
    options = ['--cfg-options', f'data_root={data}']
    done = run('train.py', config, '--work-dir', work_dir, *options, cwd=work_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    [scalars] = work_dir.glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in scalars.read_text().splitlines()]
    losses = [row['loss'] for row in rows if 'loss' in row]
    [average_precision] = [row['coco/bbox_mAP'] for row in rows if 'coco/bbox_mAP' in row]
    return np.array(losses), average_precision


@pytest.mark.slow
def test_losses_and_ap_agree(run, root, shapes_set, tmp_path):
    ap = {'auto': [], 'reference': []}
    for seed in SEEDS:
        losses = {}
        for ops, values in ap.items():
            work_dir = tmp_path / f'{ops}{seed}'
            losses[ops], average_precision = _train(run, root, shapes_set, work_dir, ops, seed)
            values.append(average_precision)
        assert len(losses['auto']) == ITERATIONS
        difference = np.abs(losses['auto'] / losses['reference'] - 1)
        print(f'seed {seed}: largest difference of losses {difference.max():.1e}')
        assert difference.max() < 1e-3, (seed, difference.argmax(), difference.max())
    print(f'AP with the operators {ap["auto"]}, without {ap["reference"]}')
    noise = max(np.ptp(ap['auto']), np.ptp(ap['reference']))
    assert abs(np.mean(ap['auto']) - np.mean(ap['reference'])) <= max(noise, 0.01)
