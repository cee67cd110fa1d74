"""Training on the fused paths and on the reference from the same start."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from backbones import PoolFormer
from backbones.ops import native

ARCH = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)
ITERATIONS = 200


@pytest.fixture(scope='module')
def start():
    torch.manual_seed(0)
    return torch.nn.ModuleList(
        [PoolFormer(ARCH, out_indices=(3,), drop_path_rate=0.1), torch.nn.Linear(4 * 32, 4)]
    )


def train(start, path, dtype):
    """Learn which corner of an image is bright; return the loss of each iteration."""
    model = copy.deepcopy(start).to(dtype)
    backbone, head = model
    backbone.set_ops(path)
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
    """The losses on the reference path in float64, where rounding has no part."""
    losses = train(start, 'reference', torch.float64)
    assert losses[-20:].mean() < 0.1 * losses[:20].mean(), 'nothing is learnt'
    return losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ('path', 'dtype'),
    [('cpu', torch.float64), ('cpu', torch.float32), ('native', torch.float32)],
    ids=str,
)
def test_loss_curves_agree(path, dtype, start, plain):
    if path == 'native' and not native.AVAILABLE:
        pytest.skip('the loops are not compiled: tools/build_ops.py')
    difference = (train(start, path, dtype) - plain).abs()
    assert (difference / plain[0]).max() <= 1e-3
