"""Which data a config names: the data sets inside loaders and wrappers, and their paths."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..errors import UserError

SPLITS = ('train', 'val', 'test')
_REMEDIES = {
    'CocoDataset': '`tools/prepare_data.py coco` brings COCO 2017 to data/coco, or links to a copy '
    'that is there already with --from DIR',
    'ADE20KDataset': '`tools/prepare_data.py ade20k` brings ADE20K to data/ade, or links to a copy '
    'that is there already with --from DIR',
}


@dataclass
class Source:
    """A data set that one or several loaders of a config name.

    Attributes:
        places: Where it stands in the config, e.g. val_dataloader.dataset.
        dataset: The data set, built but not loaded: its paths are joined, its classes resolved.
        pipelines: The transforms of each place.
        evaluated: Whether it is used for evaluation.
        masks: Whether instance masks are trained or evaluated.
    """

    places: list[str]
    dataset: BaseDataset
    pipelines: list[list[dict]]
    evaluated: bool
    masks: bool

    def option(self, key: str, transform: str) -> Any:
        """Return an argument that the pipelines give to a transform, or None."""
        for step in nodes(self.pipelines):
            if step.get('type') == transform and step.get(key) is not None:
                return step[key]
        return None

    def turns_images(self) -> bool:
        """Whether images are turned as their EXIF orientation says, which OpenCV does."""
        color_type = self.option('color_type', 'LoadImageFromFile') or 'color'
        return color_type != 'unchanged' and not color_type.endswith('ignore_orientation')


def named_sources(cfg: Config, splits: Sequence[str]) -> tuple[list[Source], list[str]]:
    """Return the data sets that a config names, each once, and the places that can't be read here.

    Raises:
        UserError: Data is missing, or a data set can't be built.
    """
    sources: dict[tuple, Source] = {}
    unread = []
    for split in splits:
        evaluators = [node for _, node in evaluators_of(cfg.get(f'{split}_evaluator'), '')]
        segm = any('segm' in _listed(node.get('metric')) for node in evaluators)
        for place, node in datasets_of(cfg.get(f'{split}_dataloader'), f'{split}_dataloader'):
            check_paths(cfg, place, node)
            dataset = _build(place, node, cfg.default_scope)
            if dataset is None or not _is_on_disk(node):
                unread.append(f'{place} ({node["type"]})')
                continue
            pipeline = list(node.get('pipeline') or [])
            masks = segm or any(step.get('with_mask') for step in nodes(pipeline))
            key = (
                type(dataset), str(dataset.ann_file), str(sorted(dataset.data_prefix.items())),
                str(dataset.metainfo.get('classes')),
            )  # fmt: skip
            source = sources.setdefault(key, Source([], dataset, [], False, False))
            source.places.append(place)
            source.pipelines.append(pipeline)
            source.evaluated |= split != 'train'
            source.masks |= masks
    return list(sources.values()), unread


def _build(place: str, node: Mapping, scope: str) -> BaseDataset | None:
    """Build a data set without reading its data; None if its class can't do that."""
    config = copy.deepcopy(dict(node)) | dict(lazy_init=True, pipeline=[])
    # The toolboxes' types are in the registry of the config's scope.
    with DATASETS.switch_scope_and_registry(scope) as registry:
        target = registry.get(node['type'])
        if target is None:
            raise UserError(f'{place}: there is no data set type {node["type"]!r}')
        if not issubclass(target, BaseDataset):
            return None
        try:
            return registry.build(config)
        except (TypeError, ValueError, AssertionError) as error:
            raise UserError(f'{place}: {node["type"]} refuses its arguments: {error}') from error


def datasets_of(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    """Data set configs inside loaders and wrappers (RepeatDataset, ConcatDataset, ...)."""
    if not isinstance(node, Mapping):
        return
    inner = node.get('datasets') or ([node['dataset']] if 'dataset' in node else [])
    for i, child in enumerate(inner):
        name = f'datasets.{i}' if 'datasets' in node else 'dataset'
        yield from datasets_of(child, f'{place}.{name}')
    if not inner and 'type' in node:
        yield place, node


def evaluators_of(node: Any, place: str) -> Iterator[tuple[str, Mapping]]:
    """Metric configs of an evaluator, which may be one or a list."""
    if isinstance(node, (list, tuple)):
        for i, child in enumerate(node):
            yield from evaluators_of(child, f'{place}.{i}')
    elif isinstance(node, Mapping):
        yield place, node


def nodes(node: Any) -> Iterator[Mapping]:
    """Every mapping inside a part of a config, itself included."""
    if isinstance(node, Mapping):
        yield node
        node = node.values()
    elif not isinstance(node, (list, tuple)):
        return
    for child in node:
        yield from nodes(child)


def check_paths(cfg: Config, place: str, dataset: Mapping) -> None:
    """Raise UserError if a data set's folders or its annotation file are not there."""
    if not _is_on_disk(dataset):
        return
    paths = {f'data_prefix.{key}': path for key, path in dataset.get('data_prefix', {}).items()}
    paths['ann_file'] = dataset.get('ann_file')
    for key, path in paths.items():
        if is_local(path):
            check_exists(cfg, join(dataset, path), f'{place}.{key}', dataset['type'])


def check_exists(cfg: Config, path: Path, place: str, dataset_type: str | None) -> None:
    """Raise UserError with the remedy if nothing is at a path that the config names."""
    if path.exists():
        return
    remedy = cfg.get('prepare_data') or _REMEDIES.get(dataset_type)
    raise UserError(
        f'{place}: no data at {path.absolute()}. '
        + (f'{remedy}. ' if remedy else '')
        + "If it lies elsewhere, set data_root=PATH, or the data set's own ann_file and data_prefix"
    )


def join(dataset: Mapping, path: str) -> Path:
    """Return a path of a data set's config below its root."""
    return Path(dataset.get('data_root') or '', path)


def is_local(path: Any) -> bool:
    """Whether this is the path of a file, not a URL and not empty."""
    return isinstance(path, (str, os.PathLike)) and bool(path) and '://' not in str(path)


def _is_on_disk(dataset: Mapping) -> bool:
    return not dataset.get('backend_args') and is_local(dataset.get('data_root') or '.')


def _listed(value: Any) -> list:
    return list(value) if isinstance(value, (list, tuple)) else [value]
