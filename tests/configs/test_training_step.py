"""The network of every leaf config trains a step and predicts, on small images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
SIDE = 64  # of the images, in pixels
MOST_BOXES = 20


def _name(path: Path) -> str:
    return str(path.relative_to(CONFIGS).with_suffix(''))


LEAVES = sorted(
    path for folder in ('.', 'beyond', 'small') for path in CONFIGS.glob(f'{folder}/*.py')
)
# Those that change the data or the schedule of another leaf, and nothing of its network.
SAME_NETWORK = {
    _name(path): path.stem.removesuffix(suffix)
    for path in LEAVES
    for suffix in ('_plain', '_lsj_3x')
    if path.stem.endswith(suffix)
}


def _networks() -> Iterator:
    """A leaf config of each network; those of larger backbones are slow."""
    for name in map(_name, LEAVES):
        if name not in SAME_NETWORK:
            small = any(size in name for size in ('_s12', '_s18', '_r18'))
            yield pytest.param(name, marks=[] if small else [pytest.mark.slow])


@pytest.mark.parametrize(('name', 'base'), SAME_NETWORK.items())
def test_a_config_of_the_same_network(load, name, base):
    assert load(name).model == load(base).model
    assert load(name).optim_wrapper == load(base).optim_wrapper


@pytest.fixture
def small(load, name) -> Config:
    """The config from scratch, with fewer boxes, and none of them refused for its low score."""
    cfg = load(name)
    model = cfg.model
    model.backbone.init_cfg = None
    if cfg.default_scope == 'mmseg':
        model.data_preprocessor.size = (SIDE, SIDE)
    elif 'roi_head' in model:
        stages = model.train_cfg.rcnn  # a list in a cascade
        for stage in stages if isinstance(stages, list) else [stages]:
            stage.sampler.num = 32
        model.test_cfg.rpn.max_per_img = MOST_BOXES
        model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=MOST_BOXES)
    else:
        model.test_cfg.update(score_thr=0.0, max_per_img=MOST_BOXES)
    return cfg


@pytest.mark.parametrize('name', [*_networks()])
def test_a_training_step_and_a_prediction(small):
    model = revert_sync_batchnorm(MODELS.build(small.model))
    batch = _segmentation_batch if small.default_scope == 'mmseg' else _detection_batch
    classes = _number_of_classes(small)
    _train_a_step(small, model, batch(2, classes))
    with torch.no_grad():
        [sample] = model.eval().test_step(batch(1, classes))
    if small.default_scope == 'mmseg':
        labels = sample.pred_sem_seg.data
        assert labels.shape == (1, SIDE, SIDE)
        assert 0 <= labels.min() <= labels.max() < classes
        assert sample.seg_logits.data.isfinite().all()
        return
    found = sample.pred_instances
    assert found.bboxes.shape == (MOST_BOXES, 4)
    assert 0 <= found.bboxes.min() <= found.bboxes.max() <= SIDE
    assert 0 <= found.labels.min() <= found.labels.max() < classes
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    if 'roi_head' in small.model:
        assert found.masks.shape == (MOST_BOXES, SIDE, SIDE)


def _train_a_step(cfg: Config, model: nn.Module, batch: dict) -> None:
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    losses = model.train().train_step(batch, optimizer)
    assert all(torch.isfinite(value) for value in losses.values()), losses
    # The optimizer has a state for exactly those parameters that had a gradient.
    state = optimizer.optimizer.state
    assert [name for name, p in trainable.items() if p not in state] == []
    assert all(p.isfinite().all() for p in trainable.values())
    assert any(not torch.equal(p, before[name]) for name, p in trainable.items())


def _number_of_classes(cfg: Config) -> int:
    model = cfg.model
    if cfg.default_scope == 'mmseg':
        return model.decode_head.num_classes
    heads = model.roi_head.bbox_head if 'roi_head' in model else model.bbox_head
    return (heads[0] if isinstance(heads, list) else heads).num_classes


def _detection_batch(size: int, classes: int) -> dict:
    batch = demo_mm_inputs(size, (3, SIDE, SIDE), [3] * size, num_classes=classes, with_mask=True)
    for sample in batch['data_samples']:
        sample.set_metainfo(dict(scale_factor=(1.0, 1.0)))
    return batch


def _segmentation_batch(size: int, classes: int) -> dict:
    samples = []
    for _ in range(size):
        meta = dict(img_shape=(SIDE, SIDE), ori_shape=(SIDE, SIDE))
        labels = PixelData(data=torch.randint(0, classes, (1, SIDE, SIDE)))
        samples.append(SegDataSample(metainfo=meta, gt_sem_seg=labels))
    images = [torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8) for _ in range(size)]
    return dict(inputs=images, data_samples=samples)
