"""The classes that configs name with ``type``, seen from the scope of each node."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.registry import Registry

from .walk import scoped_nodes

# Those whose members configs name by `type`.
REGISTRIES: list[Registry] = [
    getattr(registry, name)
    for name in (
        'DATASETS', 'DATA_SAMPLERS', 'EVALUATOR', 'FUNCTIONS', 'HOOKS', 'LOG_PROCESSORS', 'LOOPS',
        'METRICS', 'MODELS', 'MODEL_WRAPPERS', 'OPTIMIZERS', 'OPTIM_WRAPPERS', 'PARAM_SCHEDULERS',
        'RUNNERS', 'TASK_UTILS', 'TRANSFORMS', 'VISBACKENDS', 'VISUALIZERS', 'WEIGHT_INITIALIZERS',
    )
]  # fmt: skip


def find_types(kind: Any, scope: str | None) -> list[Any]:
    """Return everything that a ``type`` may stand for, of all registries.

    Args:
        kind: A name, a name with its scope or module before it, or a class or function.
        scope: The scope in which names are looked up, e.g. mmdet.
    """
    if not isinstance(kind, str):
        return [kind] if callable(kind) else []
    found = []
    for registered in _registries(scope):
        target = registered.get(kind) if '.' in kind else _named(registered).get(kind)
        if callable(target) and target not in found:
            found.append(target)
    return found


def registered_names(scope: str | None) -> set[str]:
    """Return all names that a ``type`` may have in a scope."""
    return {name for registered in _registries(scope) for name in _named(registered)}


def name_types(cfg: Config) -> None:
    """Replace classes and long names as types by the names under which they are registered.

    mmengine's pure Python configs have classes. What they import leaves the top of the config, so
    that the config can be written and read again.
    """
    cfg.default_scope = default_scope(cfg)
    written = cfg.to_dict()
    if not isinstance(kind := cfg.get('runner_type', ''), str):
        cfg.runner_type = _name(kind, cfg.default_scope) or kind
    for key, value in list(cfg.items()):
        imported = isinstance(value, (type, FunctionType, ModuleType)) and key != 'runner_type'
        if imported or key not in written:
            cfg.pop(key)
    for value in list(cfg.values()):
        for _, node, scope in scoped_nodes(value, cfg.default_scope):
            kind = node.get('type')
            if isinstance(kind, str) and '.' in kind:
                kind = next(iter(find_types(kind, scope)), None)
            if not isinstance(kind, str) and kind is not None and (name := _name(kind, scope)):
                node['type'] = name


def default_scope(cfg: Config) -> str | None:
    """Return the toolbox of a config: what it says, or else where its model comes from."""
    if cfg.get('default_scope'):
        return str(cfg.default_scope)
    kind = (cfg.get('model') or {}).get('type')
    bases = getattr(kind, '__mro__', ())
    modules = [kind] if isinstance(kind, str) else [base.__module__ for base in bases]
    packages = [name.partition('.')[0] for name in modules]
    return next((name for name in packages if name in ('mmdet', 'mmseg')), None)


def _registries(scope: str | None) -> Iterator[Registry]:
    if scope is not None:
        if importlib.util.find_spec(scope) is None:
            return
        importlib.import_module(f'{scope}.registry')
    for root in REGISTRIES:
        registered = root.children.get(scope, root)
        registered.import_from_location()
        yield registered


def _named(registered: Registry) -> dict[str, Any]:
    """What a registry and those above it know, by name."""
    above = _named(registered.parent) if registered.parent else {}
    return {**above, **registered.module_dict}


def _name(target: Any, scope: str | None) -> str | None:
    """The shortest name by which a class is found; None if it is not registered."""
    own = getattr(target, '__name__', '')
    for prefix, registered in _seen_from(scope):
        names = [name for name, value in _named(registered).items() if value is target]
        if names:
            return prefix + (own if own in names else names[0])
    # Layers of regions and kinds of NMS are named in this module, which not every mmcv has.
    return own if getattr(sys.modules.get('mmcv.ops'), own, None) is target else None


def _seen_from(scope: str | None) -> Iterator[tuple[str, Registry]]:
    for registered in _registries(scope):
        yield '', registered
    for root in REGISTRIES:
        for name, child in root.children.items():
            yield f'{name}.', child
