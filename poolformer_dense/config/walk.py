"""Walking a config: the one place that knows how its nodes nest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

SPLITS = ('train', 'val', 'test')


def walk(node: Any, place: str = '') -> Iterator[tuple[str, Any]]:
    """Yield a node and all that it holds, parents first, each with its place.

    Args:
        node: A config or a part of one.
        place: Where the node stands, with dots for depth: model.backbone, param_scheduler.0.
    """
    yield place, node
    for where, child in _children(node, place):
        yield from walk(child, where)


def scoped_nodes(
    node: Any, scope: str | None, place: str = ''
) -> Iterator[tuple[str, Any, str | None]]:
    """Yield each mapping, parents first, with its place and its scope.

    Args:
        node: A config or a part of one.
        scope: The scope of types in which none of the mappings around it names another.
        place: Where the node stands.
    """
    if isinstance(node, Mapping):
        scope = node.get('_scope_') or scope
        yield place, node, scope
    for where, child in _children(node, place):
        yield from scoped_nodes(child, scope, where)


def _children(node: Any, place: str) -> list[tuple[str, Any]]:
    if isinstance(node, (Mapping, Config)):
        named = list(node.items())
    elif isinstance(node, (list, tuple)):
        named = list(enumerate(node))
    else:
        return []
    return [(f'{place}.{key}' if place else str(key), child) for key, child in named]


def nodes_of_type(node: Any, name: str, place: str = '') -> Iterator[tuple[str, Any]]:
    """Yield the place and the mapping of each ``dict(type=name, ...)`` inside a node."""
    for where, child in walk(node, place):
        if type_name(child) == name:
            yield where, child


def type_name(node: Any) -> str:
    """Return the name of what a node is to become, without its scope; '' if it says nothing.

    The type may also be a class, as in mmengine's pure Python configs.
    """
    kind = node.get('type') if isinstance(node, Mapping) else None
    name = kind if isinstance(kind, str) else getattr(kind, '__name__', '')
    return name.rpartition('.')[2]


def datasets_of(cfg: Config, split: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the config of each data set that a split reads.

    Wrappers are looked into: those with one inner data set (RepeatDataset, ClassBalancedDataset,
    MultiImageMixDataset) and those with several (ConcatDataset).

    Args:
        cfg: The whole config.
        split: train, val or test.
    """
    loader = cfg.get(f'{split}_dataloader')
    if isinstance(loader, Mapping) and 'dataset' in loader:
        yield from _unwrapped(loader['dataset'], f'{split}_dataloader.dataset')


def _unwrapped(node: Any, place: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(node, Mapping):
        return
    if 'datasets' in node:
        for where, child in entries_of(node['datasets'], f'{place}.datasets'):
            yield from _unwrapped(child, where)
    elif 'dataset' in node:
        yield from _unwrapped(node['dataset'], f'{place}.dataset')
    elif 'type' in node:
        yield place, node


def evaluators_of(cfg: Config, split: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the config of each metric of a split's evaluator."""
    for place, node in entries_of(cfg.get(f'{split}_evaluator'), f'{split}_evaluator'):
        if isinstance(node, Mapping) and 'metrics' in node:  # dict(type='Evaluator', metrics=...)
            yield from entries_of(node['metrics'], f'{place}.metrics')
        elif isinstance(node, Mapping):
            yield place, node


def entries_of(node: Any, place: str = '') -> list[tuple[str, Any]]:
    """Return the places and the entries of what may be a list, one entry, or nothing."""
    if isinstance(node, (list, tuple)):
        return [(f'{place}.{i}', child) for i, child in enumerate(node)]
    return [] if node is None else [(place, node)]
