"""Checks that cost seconds and come before the model: data, classes, checkpoint."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS

from backbones import MetaFormer
from backbones.checkpoints import CheckpointError, check_source, is_url
from backbones.weights import RELEASED

from ..cli import first_process
from ..data.classes import check_categories, check_num_classes, classes_of, read_categories
from ..data.sources import check_exists, check_paths, datasets_of, evaluators_of, is_local, join
from ..data.verify import refuse_faulty
from ..errors import UserError

_MARKS = ('type', '_scope_')
# What the visualization back ends import when they first write, and what pip calls it.
_LOGGERS = {
    'TensorboardVisBackend': ('tensorboard', "'tensorboard>=2.16,<2.22'"),
    'WandbVisBackend': ('wandb', 'wandb'),
    'MLflowVisBackend': ('mlflow', 'mlflow'),
}


def check_run(cfg: Config, splits: Sequence[str], unsafe_load: bool = False) -> None:
    """Check what a run needs.

    Args:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test the run uses.
        unsafe_load: Leave checkpoints alone: to look into them would run the code they hold.

    Raises:
        UserError: Data is missing or has errors that show without opening every image, an
            annotation file's categories or the model's ``num_classes`` disagree with the classes,
            an argument of the backbone is wrong, a checkpoint can't be read, or a logger's
            package is not installed.
    """
    _check_loggers(cfg)
    _check_backbone(cfg.model)
    for split in splits:
        _check_data(cfg, split)
    weights = [cfg.get('load_from')]
    if 'train' in splits:
        weights += [init_cfg['checkpoint'] for init_cfg in pretrained_cfgs(cfg.model)]
    for source in filter(None, [] if unsafe_load else weights):
        if is_url(source) or source in RELEASED:
            # Several processes don't know of each other yet: each would download for itself.
            checkable = cfg.get('launcher', 'none') == 'none'
        else:
            checkable = is_local(source)
        if checkable:
            check_checkpoint(source)
    # Last, because it reads annotation files whole: seconds for COCO's. One process is enough.
    if first_process():
        for remark in refuse_faulty(cfg, splits):
            print_log(remark, 'current', logging.WARNING)


def _check_data(cfg: Config, split: str) -> None:
    for place, dataset in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
        classes = classes_of(dataset, cfg.default_scope)
        check_paths(cfg, place, dataset)
        if dataset.get('ann_file'):
            path = join(dataset, dataset['ann_file'])
            if path.suffix == '.json' and classes:
                check_categories(path, read_categories(path), classes, f'{place}.ann_file')
        if classes:
            check_num_classes(cfg.model, len(classes), place)
    for place, evaluator in evaluators_of(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
        if is_local(evaluator.get('ann_file')):
            check_exists(cfg, Path(evaluator['ann_file']), f'{place}.ann_file', None)


def _check_loggers(cfg: Config) -> None:
    for index, backend in enumerate((cfg.get('visualizer') or {}).get('vis_backends') or []):
        module, package = _LOGGERS.get(backend['type'], (None, None))
        if module and importlib.util.find_spec(module) is None:
            raise UserError(
                f'visualizer.vis_backends.{index} ({backend["type"]}): {module} is not installed: '
                f'pip install {package}, or leave it out of the list'
            )


def _check_backbone(model: Mapping) -> None:
    """Build a backbone of ours without memory, so that a wrong argument is one line."""
    backbone = model.get('backbone') or {}
    target = MODELS.get(backbone['type']) if isinstance(backbone.get('type'), str) else None
    if not (isinstance(target, type) and issubclass(target, MetaFormer)):
        return
    try:
        with torch.device('meta'):
            target(**{key: value for key, value in backbone.items() if key not in _MARKS})
    except (TypeError, ValueError) as error:
        raise UserError(f'model.backbone ({backbone["type"]}): {error}') from error


def check_checkpoint(source: str) -> None:
    """Refuse what is not a checkpoint, without reading its tensors; download it if need be.

    Raises:
        UserError: The file is missing, truncated, out of reach, or something else.
    """
    try:
        check_source(source)
    except CheckpointError as error:
        raise UserError(str(error)) from error


def pretrained_cfgs(node: Any) -> Iterator[dict]:
    """The entries of a model config that load weights when training starts."""
    if isinstance(node, Mapping):
        if node.get('type') == 'Pretrained' and 'checkpoint' in node:
            yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for child in node:
        yield from pretrained_cfgs(child)
