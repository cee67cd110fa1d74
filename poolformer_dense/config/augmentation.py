"""Test-time augmentation: the toolboxes' models around the model, their pipelines for its data."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from .walk import datasets_of, type_name, walk

# What the toolboxes' own tools take where a config names none.
_MODELS: dict[str, dict[str, Any]] = {
    'mmdet': dict(
        type='DetTTAModel',
        tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
    ),
    'mmseg': dict(type='SegTTAModel'),
}
_FLIPS = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
_OF_MASKS = ('mask_head', 'mask_thr', 'mask_thr_binary', 'instance_on')


def enable_tta(cfg: Config) -> None:
    """Test with test-time augmentation: ``tta_model`` and ``tta_pipeline`` of the config.

    Call it last, because the model of the config moves into another.

    Args:
        cfg: The config; it is changed.

    Raises:
        UserError: The model predicts masks, or ``tta_pipeline`` augments nothing.
    """
    if fault := tta_fault(cfg):
        raise UserError(fault)
    cfg.model = {**tta_model(cfg), 'module': cfg.model}
    for _, node in datasets_of(cfg, 'test'):
        node['pipeline'] = tta_pipeline(cfg, node.get('pipeline') or [])


def tta_fault(cfg: Config) -> str | None:
    """Return why a config's model can't be tested with augmentation, in one line."""
    if cfg.default_scope not in _MODELS:
        return f'--tta: default_scope={cfg.default_scope!r}, and it is for mmdet and mmseg'
    masks = [
        place
        for place, node in walk(cfg.model, 'model')
        if place.rpartition('.')[2] in _OF_MASKS and node is not None
    ]
    if cfg.default_scope == 'mmdet' and masks:
        return (
            f"--tta: mmdet's DetTTAModel joins boxes alone, and this model has masks ({masks[0]})"
        )
    pipeline = cfg.get('tta_pipeline')
    if pipeline and not any(type_name(step) == 'TestTimeAug' for step in pipeline):
        return 'tta_pipeline: it has no TestTimeAug step, so there would be nothing to join'
    return None


def tta_model(cfg: Config) -> dict[str, Any]:
    """Return the config of what joins the predictions, without the model that makes them."""
    return copy.deepcopy(dict(cfg.get('tta_model') or _MODELS[cfg.default_scope]))


def tta_pipeline(cfg: Config, steps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the pipeline that augments.

    Args:
        cfg: The config.
        steps: The test pipeline; where ``tta_pipeline`` is not given, its image and the mirrored
            one are predicted, as mmdet's own tool does.
    """
    if cfg.get('tta_pipeline'):
        return copy.deepcopy([dict(step) for step in cfg.tta_pipeline])
    *first, pack = copy.deepcopy([dict(step) for step in steps])
    if 'meta_keys' in pack:
        pack['meta_keys'] = (*dict.fromkeys([*pack['meta_keys'], 'flip', 'flip_direction']),)
    loads = [step for step in first if type_name(step) == 'LoadAnnotations']
    kept = [step for step in first if step not in loads]
    # Annotations are loaded behind the flip: what is joined is of the image as it was.
    transforms = [_FLIPS, *([step] for step in loads), [pack]]
    return [*kept, dict(type='TestTimeAug', transforms=transforms)]
