"""The data sets that a config names: their files, their classes, and what reads them."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from ..data.faults import fault, first_names
from ..data.label_order import registered_class
from ..data.source import Source
from ..errors import UserError
from .decode_heads import ignored_labels
from .walk import SPLITS, datasets_of, entries_of, evaluators_of, type_name, walk

_REMEDIES = {
    'CocoDataset': '`tools/prepare_data.py coco` brings COCO 2017 to data/coco, or links to a copy '
    'that is there already with --from DIR',
    'ADE20KDataset': '`tools/prepare_data.py ade20k` brings ADE20K to data/ade, or links to a copy '
    'that is there already with --from DIR',
}
# A backbone's classes are of the classifier that it is not used as, a proposal is of one class;
# losses count in their own ways.
_OTHER_PLACES = {'backbone', 'rpn_head', 'semantic_head', 'reid', 'loss_cls', 'loss_decode'}
# Heads of boundaries, of stuff, or of words.
_OTHER_TASKS = {'STDCHead', 'FusedSemanticHead', 'GroundingDINOHead', 'ATSSVLFusionHead'}


def named_sources(cfg: Config, splits: Sequence[str] = SPLITS) -> tuple[list[Source], list[str]]:
    """Return the data sets that a config names, each once.

    Args:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test to look at.

    Returns:
        The data sets, and the places of those whose type can't be looked into.

    Raises:
        UserError: Data is missing, or a data set can't be built.
    """
    sources: dict[tuple[Any, ...], Source] = {}
    unknown = []
    for split in splits:
        metrics = [
            m for _, node in evaluators_of(cfg, split) for _, m in entries_of(node.get('metric'))
        ]
        for place, node in datasets_of(cfg, split):
            check_paths(cfg, place, node)
            dataset = unread_dataset(place, node, cfg.default_scope)
            if dataset is None:
                unknown.append(f'{place} ({node["type"]})')
                continue
            key = (
                type(dataset), str(dataset.ann_file), str(sorted(dataset.data_prefix.items())),
                str(dataset.metainfo.get('classes')),
            )  # fmt: skip
            if key not in sources:
                sources[key] = _source(cfg, place, node, dataset)
            source = sources[key]
            transforms = [t for _, t in walk(node.get('pipeline')) if isinstance(t, Mapping)]
            source.places.append(place)
            source.members.append((dataset, node))
            source.transforms += [(place, transform) for transform in transforms]
            source.evaluated |= split != 'train'
            source.masks |= 'segm' in metrics or any(t.get('with_mask') for t in transforms)
    for source in sources.values():
        used = [split for split in splits if any(p.startswith(split) for p in source.places)]
        source.ignored_labels = ignored_labels(cfg, used)
    return list(sources.values()), unknown


def _source(cfg: Config, place: str, node: Mapping[str, Any], dataset: BaseDataset) -> Source:
    source = Source(
        dataset,
        local=_is_on_disk(node),
        evaluators=[
            where
            for split in SPLITS
            for where, metric in evaluators_of(cfg, split)
            if metric.get('ann_file')
            and os.path.abspath(metric['ann_file']) == os.path.abspath(dataset.ann_file)
        ],
    )
    if source.classes:
        problems = wrong_num_classes(cfg.model, len(source.classes), place)
        source.faults = [fault('classes', place, problem) for problem in problems]
    return source


def unread_dataset(place: str, node: Mapping[str, Any], scope: str) -> BaseDataset | None:
    """Build a data set without reading its data; None if its class can't do that.

    Args:
        place: Where the config names it.
        node: Its config.
        scope: The config's default scope.

    Raises:
        UserError: Its type, its arguments or its classes are wrong.
    """
    config = copy.deepcopy(dict(node)) | dict(lazy_init=True, pipeline=[])
    # The toolboxes' types are in the registry of the config's scope.
    with DATASETS.switch_scope_and_registry(scope) as registry:
        target = registered_class(node, registry)
        if target is None:
            raise UserError(f'{place}: there is no data set type {node["type"]!r}')
        if not issubclass(target, BaseDataset):
            return None
        _check_metainfo(place, node.get('metainfo'))
        try:
            dataset = registry.build(config)
        except (TypeError, ValueError, AssertionError, OSError) as error:
            raise UserError(f'{place}: {target.__name__} refuses its arguments: {error}') from error
    check_names(dataset.metainfo.get('classes'), f'{place}.metainfo.classes')
    return dataset


def _check_metainfo(place: str, metainfo: Any) -> None:
    """Refuse the names that mmdet 2 and mmseg 0 had, which are ignored now."""
    for key in metainfo if isinstance(metainfo, Mapping) else ():
        if key in ('CLASSES', 'PALETTE'):
            raise UserError(f'{place}.metainfo.{key} is ignored: the name is {key.lower()} now')


def check_names(classes: Any, place: str) -> None:
    """Refuse what is no list of different names of classes; None is none at all.

    Raises:
        UserError: One line with the place and the remedy.
    """
    if classes is None:
        return
    if isinstance(classes, str):
        raise UserError(
            f'{place} is the text {classes!r}, and each of its letters would be a class; a tuple '
            f'of one needs a comma, ({classes!r},), on the command line "[\'{classes}\']". A file '
            'of names, one a line, would have to be there'
        )
    if not isinstance(classes, (list, tuple)):
        raise UserError(f'{place} is {classes!r}; it is a tuple of names')
    if wrong := [name for name in classes if not isinstance(name, str) or not name.strip()]:
        raise UserError(f'{place} has {wrong[0]!r} among its names; each is a text, none is empty')
    if twice := [name for name, count in Counter(classes).items() if count > 1]:
        raise UserError(f'{place} has a name several times: {first_names(twice)}')


def checkpoint_classes(checkpoint: Mapping[str, Any]) -> list[str]:
    """Return the classes that a checkpoint was trained with, in the order of its labels.

    Nothing if it does not tell. mmdet 2 and mmseg 0 wrote ``CLASSES``; of a concatenation mmdet may
    write one entry for each data set.
    """
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, Mapping) else {}
    saved = meta.get('dataset_meta') or meta
    saved = saved[0] if isinstance(saved, (list, tuple)) else saved
    classes = (saved.get('classes') or saved.get('CLASSES')) if isinstance(saved, Mapping) else ()
    return [classes] if isinstance(classes, str) else list(classes or ())


def check_paths(cfg: Config, place: str, dataset: Mapping[str, Any]) -> None:
    """Raise UserError if a data set's folders or its annotation file are not there."""
    if not _is_on_disk(dataset):
        return
    paths = {f'data_prefix.{key}': path for key, path in dataset.get('data_prefix', {}).items()}
    paths['ann_file'] = dataset.get('ann_file')
    for key, path in paths.items():
        if is_local(path):
            below_root = Path(dataset.get('data_root') or '', path)
            if problem := missing_data(cfg, below_root, f'{place}.{key}', dataset['type']):
                raise UserError(problem)


def missing_data(cfg: Config, path: Path, place: str, dataset_type: str | None = None) -> str:
    """Return the remedy if nothing is at a path that the config names; nothing if there is."""
    if path.exists():
        return ''
    remedy = cfg.get('prepare_data') or _REMEDIES.get(str(dataset_type))
    return (
        f'{place}: no data at {path.absolute()}. '
        + (f'{remedy}. ' if remedy else '')
        + "If it lies elsewhere, set data_root=PATH, or the data set's own ann_file and data_prefix"
    )


def is_local(path: Any) -> bool:
    """Whether this is the path of a file, not a URL and not empty."""
    return isinstance(path, (str, os.PathLike)) and bool(path) and '://' not in str(path)


def _is_on_disk(dataset: Mapping[str, Any]) -> bool:
    return not dataset.get('backend_args') and is_local(dataset.get('data_root') or '.')


def check_num_classes(model: Any, expected: int, place: str) -> None:
    """Raise UserError if a head is built for another number of classes than the data has."""
    for problem in wrong_num_classes(model, expected, place):
        raise UserError(problem)


def wrong_num_classes(model: Any, expected: int, place: str) -> Iterator[str]:
    """Name each head of a model config that is built for another number of classes."""
    for where, node in walk(model, 'model'):
        value = node.get('num_classes') if isinstance(node, Mapping) else None
        if not isinstance(value, int) or value == expected:
            continue
        other = type_name(node) in _OTHER_TASKS or node.get('class_agnostic')
        if not other and not _OTHER_PLACES & set(where.split('.')):
            path = f'{where}.num_classes'
            yield (
                f'{path}={value}, but {place} has {expected} classes; set both to the same, e.g. '
                f'--cfg-options {path}={expected}'
            )
