"""Detectors and segmentors that predict in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from poolformer_dense.config.load import load_config

HEADS = ('retinanet', 'mask_rcnn', 'fpn')
_ARCH = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 48))


def tiny_config(root: Path, head: str) -> Config:
    """The config of a demo, with a backbone of four blocks."""
    cfg = load_config(str(root / f'configs/demo/{head}_poolformer_s12.py'))
    indices = tuple(cfg.model.backbone.out_indices)
    cfg.model.backbone = dict(type='MetaFormer', arch=_ARCH, out_indices=indices)
    cfg.model.neck.in_channels = [_ARCH['dims'][i] for i in indices]
    if head != 'fpn':
        test_cfg = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
        test_cfg.max_per_img = 5  # drawing is what takes the time
    if head == 'mask_rcnn':
        cfg.model.test_cfg.rpn.max_per_img = 20
    return cfg


def write_weights(cfg: Config, path: Path) -> Path:
    """Weights with which a detector is sure of something everywhere."""
    torch.manual_seed(1)
    weights = MODELS.build(cfg.model).state_dict()
    for name, value in weights.items():
        if name.endswith(('retina_cls.weight', 'fc_cls.weight', 'mask_head.conv_logits.weight')):
            value.normal_(std=0.02 if 'retina' in name else 0.5)
        if name.endswith('retina_cls.bias'):
            value.fill_(1)
    torch.save(dict(state_dict=weights), path)
    return path
