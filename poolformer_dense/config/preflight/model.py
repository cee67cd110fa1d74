"""What is wrong with a model before it is built."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import torch
from mmengine.registry import MODELS

from backbones import MetaFormer

from .plan import Notice, Plan


def check_backbone(plan: Plan) -> Iterator[Notice]:
    """Build a backbone of ours without memory, so that a wrong argument is one line."""
    backbone = dict(plan.cfg.model.get('backbone') or {})
    name = backbone.pop('type', None)
    backbone.pop('_scope_', None)
    target = MODELS.get(name) if isinstance(name, str) else None
    if isinstance(target, type) and issubclass(target, MetaFormer):
        try:
            with torch.device('meta'):
                target(**backbone)
        except (TypeError, ValueError) as error:
            yield Notice(logging.ERROR, f'model.backbone ({name}): {error}')
