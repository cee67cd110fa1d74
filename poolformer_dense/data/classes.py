"""The config's classes against the categories of the file and the heads of the model."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..errors import UserError


def classes_of(dataset: Mapping, scope: str) -> list[str]:
    """Return the classes that a data set's config declares, or else its type's own."""
    declared = (dataset.get('metainfo') or {}).get('classes')
    if declared is None:
        # The toolboxes' types are in the registry of the config's scope.
        with DATASETS.switch_scope_and_registry(scope) as registry:
            target = registry.get(dataset['type'])
        declared = getattr(target, 'METAINFO', {}).get('classes')
    return [declared] if isinstance(declared, str) else list(declared or [])


def check_categories(path: Path, names: Sequence[str], classes: Sequence[str], place: str) -> None:
    """Check the categories of an annotation file against the config's classes.

    Args:
        path: The annotation file.
        names: Its categories, in its order.
        classes: The config's.
        place: Where the config names the file.

    Raises:
        UserError: A class is not in the file, or the orders differ.
    """
    missing = [name for name in classes if name not in names]
    if missing:
        raise UserError(
            f'{place}: {path} does not have {len(missing)} of the {len(classes)} classes of the '
            f'config ({listed(missing)}). For the categories of the file, give each data set '
            f'metainfo=dict(classes={tuple(names)}) and the heads num_classes={len(names)}'
        )
    in_file_order = [name for name in names if name in classes]
    if in_file_order != list(classes):
        raise UserError(
            f'{place}: the classes of the config are in another order than the categories of '
            f'{path}, and labels follow the file. Set metainfo.classes to {tuple(in_file_order)}'
        )
    if extra := [name for name in names if name not in classes]:
        print_log(f'{path}: categories left out by the config: {listed(extra)}', 'current')


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


def check_num_classes(model: Any, expected: int, place: str) -> None:
    """Raise UserError if a head is built for another number of classes than the data has."""
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


def listed(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, and how many it has."""
    return ', '.join(names[:most]) + (f', ... ({len(names)} in all)' if len(names) > most else '')
