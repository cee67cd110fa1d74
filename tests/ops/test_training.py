"""Training on the fused backends and on the reference from the same start."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from backbones import PoolFormer
from backbones.ops.backends import library
from poolformer_dense.measure.shapes import write_coco

ARCH = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)
ITERATIONS = 200


@pytest.fixture(scope='module')
def start():
    torch.manual_seed(0)
    return torch.nn.ModuleList(
        [PoolFormer(ARCH, out_indices=(3,), drop_path_rate=0.1), torch.nn.Linear(4 * 32, 4)]
    )


def train(start, backend, dtype):
    """Learn which corner of an image is bright; return the loss of each iteration."""
    model = copy.deepcopy(start).to(dtype)
    backbone, head = model
    backbone.set_backend(backend)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    torch.manual_seed(2)
    for _ in range(ITERATIONS):
        labels = torch.randint(4, (8,))
        images = torch.randn(8, 3, 64, 64, dtype=torch.float32).to(dtype)
        for image, label in zip(images, labels.tolist(), strict=True):
            row, column = 32 * (label // 2), 32 * (label % 2)
            image[:, row : row + 32, column : column + 32] += 0.5
        (features,) = backbone(images)
        loss = F.cross_entropy(head(features.flatten(1)), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return torch.tensor(losses, dtype=torch.float64)


@pytest.fixture(scope='module')
def plain(start):
    """The losses on the reference in float64, where rounding has no part."""
    losses = train(start, 'reference', torch.float64)
    assert losses[-20:].mean() < 0.1 * losses[:20].mean(), 'nothing is learnt'
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ('backend', 'dtype'),
    [('cpu', torch.float64), ('cpu', torch.float32), ('native', torch.float32)],
    ids=str,
)
def test_loss_curves_agree(backend, dtype, start, plain):
    if backend == 'native' and not library.compiled():
        pytest.skip('the loops can not be compiled')
    difference = (train(start, backend, dtype) - plain).abs()
    assert (difference / plain[0]).max() <= 1e-3


DETECTOR = """
_base_ = '{root}/configs/demo/retinanet_poolformer_s12.py'

model = dict(
    backbone=dict(arch=dict(_delete_=True, depths=(1, 1, 2, 1), dims=(24, 48, 96, 192))),
    neck=dict(in_channels=[48, 96, 192], out_channels=64),
    bbox_head=dict(in_channels=64, feat_channels=64, stacked_convs=2),
)
optim_wrapper = dict(clip_grad=dict(max_norm=35))
train_cfg = dict(val_interval=12)
"""


@pytest.mark.slow
def test_a_detector_becomes_as_good(run, root, tmp_path):
    """Six trainings of 720 iterations from scratch: rounding takes each another way."""
    write_coco(tmp_path / 'coco', num_train=240, num_val=40)
    config = tmp_path / 'detector.py'
    config.write_text(DETECTOR.format(root=root))

    def average_precision(backend: str, seed: int) -> float:
        folder = tmp_path / f'{backend}{seed}'
        done = run(
            'train.py', config, '--work-dir', folder,
            '--cfg-options', f'data_root={tmp_path}/coco', f'randomness.seed={seed}',
            f'model.backbone.backend={backend}',
            cwd=tmp_path, env={'OMP_NUM_THREADS': '1'},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (scalars,) = folder.glob('*/vis_data/scalars.json')
        lines = map(json.loads, Path(scalars).read_text().splitlines())
        return next(line['coco/bbox_mAP'] for line in lines if 'coco/bbox_mAP' in line)

    plain, fused = (
        torch.tensor([average_precision(backend, seed) for seed in range(3)])
        for backend in ('reference', 'auto')
    )
    print(f'AP of three seeds, plain: {plain.tolist()}, fused: {fused.tolist()}')
    assert plain.min() > 0.3, 'nothing is learnt'
    noise = max((ap.max() - ap.min()).item() for ap in (plain, fused))
    assert (plain.mean() - fused.mean()).abs() <= noise
