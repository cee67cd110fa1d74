"""Checks that cost seconds and come before the model: data, classes, checkpoint."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS, MODELS

from backbones import MetaFormer
from backbones.checkpoints import CheckpointError, is_url, read_checkpoint
from backbones.weights import RELEASED

from .errors import UserError

_MARKS = ('type', '_scope_')
_LAYOUTS = {
    'CocoDataset': 'COCO 2017 (cocodataset.org) unpacks to train2017/, val2017/ and annotations/',
    'ADE20KDataset': 'ADEChallengeData2016.zip (sceneparsing.csail.mit.edu) unpacks to '
    'images/{training,validation}/ and annotations/{training,validation}/',
}


def check_run(cfg: Config, splits: Sequence[str]) -> None:
    """Check what a run needs.

    Args:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test the run uses.

    Raises:
        UserError: Data is missing, an annotation file's categories or the model's ``num_classes``
            disagree with the classes, an argument of the backbone is wrong, or a checkpoint
            can't be read.
    """
    _check_backbone(cfg.model)
    for split in splits:
        for place, dataset in _datasets(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            classes = _classes(dataset)
            _check_paths(cfg, place, dataset)
            if dataset.get('ann_file'):
                path = _join(dataset, dataset['ann_file'])
                _check_categories(path, classes, f'{place}.ann_file')
            if classes:
                _check_num_classes(cfg.model, len(classes), place)
        for place, evaluator in _evaluators(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
            if _is_local(evaluator.get('ann_file')):
                _check_exists(cfg, Path(evaluator['ann_file']), f'{place}.ann_file', None)
    weights = [cfg.get('load_from')]
    if 'train' in splits:
        weights += [init_cfg['checkpoint'] for init_cfg in pretrained_cfgs(cfg.model)]
    for source in filter(None, weights):
        if is_url(source) or source in RELEASED:
            # Several processes don't know of each other yet: each would download for itself.
            checkable = cfg.get('launcher', 'none') == 'none'
        else:
            checkable = _is_local(source)
        if checkable:
            check_checkpoint(source)


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
        read_checkpoint(source, map_location='meta')
    except CheckpointError as error:
        raise UserError(str(error)) from error


def _datasets(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    """Data set configs inside loaders and wrappers (RepeatDataset, ConcatDataset, ...)."""
    if not isinstance(node, Mapping):
        return
    inner = node.get('datasets') or ([node['dataset']] if 'dataset' in node else [])
    for i, child in enumerate(inner):
        name = f'datasets.{i}' if 'datasets' in node else 'dataset'
        yield from _datasets(child, f'{place}.{name}')
    if not inner and 'type' in node:
        yield place, node


def _evaluators(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from _evaluators(child, f'{place}.{i}')
    elif isinstance(node, Mapping):
        yield place, node


def _classes(dataset: Mapping) -> list[str]:
    declared = (dataset.get('metainfo') or {}).get('classes')
    if declared is None:
        target = DATASETS.get(dataset['type'])
        declared = getattr(target, 'METAINFO', {}).get('classes')
    return [declared] if isinstance(declared, str) else list(declared or [])


def _is_local(path: Any) -> bool:
    return isinstance(path, (str, os.PathLike)) and bool(path) and '://' not in str(path)


def _join(dataset: Mapping, path: str) -> Path:
    return Path(dataset.get('data_root') or '', path)


def _check_paths(cfg: Config, place: str, dataset: Mapping) -> None:
    if dataset.get('backend_args') or not _is_local(dataset.get('data_root') or '.'):
        return
    paths = {f'data_prefix.{key}': path for key, path in dataset.get('data_prefix', {}).items()}
    paths['ann_file'] = dataset.get('ann_file')
    for key, path in paths.items():
        if _is_local(path):
            _check_exists(cfg, _join(dataset, path), f'{place}.{key}', dataset['type'])


def _check_exists(cfg: Config, path: Path, place: str, dataset_type: str | None) -> None:
    if path.exists():
        return
    remedy = cfg.get('prepare_data') or _LAYOUTS.get(dataset_type)
    raise UserError(
        f'{place}: no data at {path.absolute()}. '
        + (f'{remedy}. ' if remedy else '')
        + "If it lies elsewhere, set data_root=PATH, or the data set's own ann_file and data_prefix"
    )


def _check_categories(path: Path, classes: list[str], place: str) -> None:
    if path.suffix != '.json' or not classes:
        return
    names = read_categories(path)
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f'{place}: {path} does not have {len(missing)} of the {len(classes)} classes of the '
            f'config ({_listed(missing)}). For the categories of the file, give each data set '
            f'metainfo=dict(classes={tuple(names)}) and the heads num_classes={len(names)}'
        )
    in_file_order = [name for name in names if name in classes]
    if in_file_order != classes:
        raise UserError(
            f'{place}: the classes of the config are in another order than the categories of '
            f'{path}, and labels follow the file. Set metainfo.classes to {tuple(in_file_order)}'
        )
    if extra := [name for name in names if name not in classes]:
        print_log(f'{path}: categories left out by the config: {_listed(extra)}', 'current')


def read_categories(path: Path) -> list[str]:
    """Return the category names of a COCO annotation file, in its order.

    Only the ``categories`` entry is parsed: the file of COCO's training set has 450 MB.

    Raises:
        UserError: The file is not JSON or has no categories.
    """
    decoder = json.JSONDecoder()
    with path.open('rb') as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                start = content.rfind(b'"categories"')
                if start >= 0:
                    tail = content[start + len(b'"categories"') :].decode('utf-8', 'replace')
                    try:
                        categories, _ = decoder.raw_decode(tail.lstrip().lstrip(':').lstrip())
                        return [category['name'] for category in categories]
                    except (ValueError, TypeError, KeyError):
                        pass
    raise UserError(f'{path} is not a COCO annotation file: it has no list of named "categories"')


def _check_num_classes(model: Any, expected: int, place: str) -> None:
    for path, value in _num_classes(model, 'model'):
        if value != expected:
            raise UserError(
                f'{path}={value}, but {place} has {expected} classes; set both to the same, e.g. '
                f'--cfg-options {path}={expected}'
            )


def _num_classes(node: Any, place: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, Mapping):
        if isinstance(node.get('num_classes'), int):
            yield f'{place}.num_classes', node['num_classes']
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    else:
        return
    for key, child in children:
        if key not in ('backbone', 'loss_cls', 'loss_decode'):
            yield from _num_classes(child, f'{place}.{key}')


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


def _listed(names: Sequence[str], most: int = 5) -> str:
    return ', '.join(names[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')
