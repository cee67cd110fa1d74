"""Detectors and segmentors of a few thousand weights, of the kinds that the demo's are."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS

from poolformer_dense.config.load import load_config
from poolformer_dense.predict.building import load_predictor
from poolformer_dense.predict.predictor import Predictor

HEADS = ('retinanet', 'mask_rcnn', 'cascade', 'fpn')
_DIMS = (16, 24, 32, 48)
# The last layers, whose outputs are scores and boxes.
_LAST = ('retina_', 'rpn_cls', 'rpn_reg', 'conv_seg', 'fc_cls', 'fc_reg')


def tiny_config(root: Path, head: str, most: int | None = None) -> Config:
    """The demo's config with a tiny network; the cascade is that of the paper's size.

    Args:
        root: The repository.
        head: Of `HEADS`.
        most: Objects that a detector finds at most, of four times as many proposals: where masks
            are drawn, this takes the time.
    """
    name = 'mask_rcnn' if head == 'cascade' else head
    cfg = load_config(str(root / f'configs/demo/{name}_poolformer_s12.py'))
    if head == 'cascade':
        path = root / 'configs/beyond/cascade_mask_rcnn_poolformer_s12.py'
        cfg.model = load_config(str(path)).model
    model = cfg.model
    indices = tuple(model.backbone.out_indices)
    arch = dict(depths=(1, 1, 1, 1), dims=_DIMS, layer_scale_init=1.0)
    model.backbone = dict(type='MetaFormer', arch=arch, out_indices=indices)
    model.neck.update(in_channels=[_DIMS[i] for i in indices], out_channels=16)
    if head == 'retinanet':
        model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    elif head == 'fpn':
        model.decode_head.update(in_channels=[16] * 4, channels=16)
    else:
        model.rpn_head.update(in_channels=16, feat_channels=16)
        second = model.roi_head
        second.bbox_roi_extractor.out_channels = 16
        second.mask_roi_extractor.out_channels = 16
        second.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=3)
        heads = second.bbox_head if head == 'cascade' else [second.bbox_head]
        for each in heads:
            each.update(in_channels=16, fc_out_channels=16, num_classes=3)
    if most and head != 'fpn':
        model.test_cfg.get('rcnn', model.test_cfg).max_per_img = most
        if 'rpn' in model.test_cfg:
            model.test_cfg.rpn.max_per_img = 4 * most
    return cfg


def write_weights(cfg: Config, path: Path) -> Path:
    """Write weights so large that scores differ from place to place; return their path."""
    torch.manual_seed(3)
    weights = MODELS.build(cfg.model).state_dict()
    for name, value in weights.items():
        if name.endswith('.weight') and (value.ndim == 4 or 'fc_' in name):
            last = any(part in name for part in _LAST)
            fully = 1.5 if 'fc_' in name else 0.3
            value.normal_(std=(fully if last else 1) * (value[0].numel()) ** -0.5)
        elif name.endswith('running_var'):
            value.uniform_(0.5, 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights), path)
    return path


def tiny_predictor(root: Path, head: str, path: Path) -> Predictor:
    """A tiny model that predicts, of `HEADS`; its checkpoint goes to the path."""
    cfg = tiny_config(root, head)
    return load_predictor(cfg, str(write_weights(cfg, path)), 'cpu')
