"""One order of classes: labels follow ``metainfo.classes`` in every data set and metric."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.registry import Registry

from ..errors import UserError
from .categories import order_problem, read_categories


def in_class_order(config: Any, registry: Registry) -> Any:
    """Return the config of data sets or metrics, with our class where upstream's is named.

    Args:
        config: A node, or a list of nodes; wrappers are looked into.
        registry: mmengine's DATASETS or METRICS.
    """
    if isinstance(config, Mapping):
        changed: Any = copy.copy(config)
        for key, value in config.items():
            if key != 'pipeline':
                changed[key] = in_class_order(value, registry)
        kind = registered_class(config, registry)
        if kind is not None and has_class_order(kind):
            from .ordered_coco import ordered

            changed['type'] = ordered(kind)
        return changed
    if isinstance(config, (list, tuple)):
        return type(config)(in_class_order(value, registry) for value in config)
    return config


def has_class_order(kind: Any) -> bool:
    """Whether labels of a data set or a metric of this class follow ``metainfo.classes``."""
    # Without mmdet there can be no subclass of its classes; to import it takes seconds.
    if 'mmdet.datasets' not in sys.modules:
        return False
    from .ordered_coco import OrderedCocoDataset, OrderedCocoMetric, ordered

    return issubclass(ordered(kind), (OrderedCocoDataset, OrderedCocoMetric))


def is_coco_metric(kind: Any) -> bool:
    """Whether this is mmdet's `CocoMetric` or a subclass of it."""
    return any(base.__name__ == 'CocoMetric' for base in getattr(kind, '__mro__', ()))


def check_order_as_built(dataset: Any) -> None:
    """Refuse a data set that is an object with labels in another order than its classes.

    Args:
        dataset: What was built elsewhere; wrappers are looked into.

    Raises:
        UserError: Its annotation file has the categories in another order.
    """
    if 'mmdet.datasets' not in sys.modules:
        return
    from .ordered_coco import OrderedCocoDataset, ordered

    for inner in (getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())):
        if inner is not None:
            check_order_as_built(inner)
    kind: Any = type(dataset)
    if issubclass(ordered(kind), OrderedCocoDataset) and not issubclass(kind, OrderedCocoDataset):
        path = Path(dataset.ann_file or '')
        classes = dataset.metainfo.get('classes') or ()
        if path.is_file() and (problem := order_problem(path, read_categories(path), classes)):
            raise UserError(
                f'{kind.__name__}, given as an object: {problem}, or give the data set as a config'
            )


def registered_class(node: Mapping[str, Any], registry: Registry) -> type | None:
    """Return the class that a node names; None if it names none, or there is no such class."""
    kind = node.get('type')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(node.get('_scope_')) as found:
            kind = found.get(kind)
    return kind if isinstance(kind, type) else None
