"""``--cfg-options`` that can't be misspelled: a key must exist, or be an argument of its class."""

from __future__ import annotations

import copy
import difflib
import inspect
import re
from collections.abc import Iterator
from typing import Any

from mmengine import registry
from mmengine.config import Config
from mmengine.runner import LogProcessor, Runner
from torch.utils.data import DataLoader

from ..errors import UserError
from .walk import walk


def _parameters(target: Any) -> set[str]:
    """Names that a class or function takes; follows ``**kwargs`` up the base classes."""
    names: set[str] = set()
    owners = target.__mro__ if inspect.isclass(target) else [target]
    for owner in owners:
        init = owner.__dict__.get('__init__') if inspect.isclass(owner) else owner
        if init is None or owner is object:
            continue
        parameters = inspect.signature(init).parameters.values()
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        names |= {p.name for p in parameters if p.kind in named}
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
            break
    return names - {'self'}


# The registries whose members configs name by `type`.
_REGISTRIES = [
    getattr(registry, name)
    for name in (
        'DATASETS', 'DATA_SAMPLERS', 'EVALUATOR', 'HOOKS', 'LOG_PROCESSORS', 'LOOPS', 'METRICS',
        'MODELS', 'MODEL_WRAPPERS', 'OPTIMIZERS', 'OPTIM_WRAPPERS', 'PARAM_SCHEDULERS',
        'TASK_UTILS', 'TRANSFORMS', 'VISBACKENDS', 'VISUALIZERS', 'WEIGHT_INITIALIZERS',
    )
]  # fmt: skip
_LOADER = _parameters(DataLoader) | {'num_batch_per_epoch'}
# What mmengine reads of nodes that carry no `type`.
_TYPELESS = {
    '': _parameters(Runner)
    | {'custom_imports', 'compile', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type'}
    | {'sync_bn', 'tta_model', 'tta_pipeline'},
    'train_dataloader': _LOADER,
    'val_dataloader': _LOADER,
    'test_dataloader': _LOADER,
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'log_processor': _parameters(LogProcessor),
    'optim_wrapper.paramwise_cfg': {
        'base_total_batch_size', 'bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate',
        'custom_keys', 'dcn_offset_lr_mult', 'dwconv_decay_mult', 'flat_decay_mult',
        'norm_decay_mult',
    },
    'randomness': {'seed', 'deterministic', 'diff_rank_seed'},
}  # fmt: skip
# What mmengine takes out of a typed node before its class sees the rest.
_CONSUMED = {'optim_wrapper': {'constructor', 'paramwise_cfg'}}


def apply_overrides(cfg: Config, overrides: dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config, in place.

    ``data_root`` alone moves every path of the config that starts with the config's own
    ``data_root``: data sets and evaluators.

    Args:
        cfg: The config; the toolbox of its ``default_scope`` must be importable.
        overrides: Dotted keys and their values.

    Raises:
        UserError: A key exists neither in the config nor among the arguments of the class that its
            node names, or has no effect.
    """
    overrides = dict(overrides)
    if 'data_root' in overrides and 'data_root' in cfg:
        _check_value(cfg, 'data_root', overrides['data_root'])
        _move_data_root(cfg, str(overrides.pop('data_root')))
    merged = copy.deepcopy(cfg)
    for key, value in overrides.items():
        try:
            merged.merge_from_dict({key: value})
        except (KeyError, TypeError) as error:
            raise UserError(f'--cfg-options {key}: {error.args[0]}') from error
    for key, value in overrides.items():
        _check_key(cfg, merged, key)
        _check_value(cfg, key, value)
    cfg.merge_from_dict(overrides)


def _check_key(cfg: Config, merged: Config, key: str) -> None:
    parts = key.split('.')
    _check_effect(cfg, parts)
    old, new = cfg.to_dict(), merged.to_dict()
    for depth, part in enumerate(parts):
        if isinstance(new, (list, tuple)):
            old, new = (node[int(part)] for node in (old, new))
            continue
        if not isinstance(old, dict) or part not in old:
            place = '.'.join(parts[:depth])
            valid = _valid_names(new, place) | (set(old) if isinstance(old, dict) else set())
            is_new_hook = place == 'default_hooks' and 'type' in (new.get(part) or {})
            if part not in valid | {'type', '_scope_', '_delete_'} and not is_new_hook:
                raise UserError(_unknown(cfg, key, place, part, valid, new.get('type')))
            return
        old, new = old[part], new[part]


def _check_value(cfg: Config, key: str, value: Any) -> None:
    """Refuse a type that is not registered, and what is of another kind than the config's."""
    if key.split('.')[-1] == 'type' and isinstance(value, str) and not _classes(value):
        known = [name for root in _REGISTRIES for name in _registered(root)]
        nearest = difflib.get_close_matches(value, known, 1, 0.6)
        hint = f'; the nearest is {nearest[0]}' if nearest else ''
        raise UserError(f'--cfg-options {key}: no class is called {value!r}{hint}')
    old = dict(walk(cfg)).get(key)
    if isinstance(old, (int, float)) and isinstance(value, str):
        raise UserError(f'--cfg-options {key}: {value!r} is text, the config has {old!r} there')
    if isinstance(old, (list, tuple)) and isinstance(value, str) and ',' in value:
        raise UserError(
            f'--cfg-options {key}: {value!r} is text, the config has a list there; put brackets '
            f'around a list: "{key}=[{value}]"'
        )
    if isinstance(old, str) and re.search(r'[/.]', old) and isinstance(value, (list, tuple)):
        text = ','.join(map(str, value))
        raise UserError(
            f'--cfg-options {key}: {value!r} is a list, the config has the text {old!r} there; '
            f'put quotes around a text with commas: {key}="\'{text}\'"'
        )


def _registered(root: registry.Registry) -> Iterator[str]:
    yield from root.module_dict
    for child in root.children.values():
        yield from child.module_dict


def _valid_names(node: dict[str, Any], place: str) -> set[str]:
    if 'type' not in node:
        return _TYPELESS.get(place, set())
    names = set(_CONSUMED.get(place, set()))
    for target in _classes(node['type']):
        names |= _parameters(target)
    return names


def _classes(name: Any) -> list[Any]:
    """Everything registered under a name, in any registry, seen from the default scope."""
    if not isinstance(name, str):
        return [name]
    found = []
    for root in _REGISTRIES:
        with root.switch_scope_and_registry(None) as scoped:
            found.append(scoped.get(name))
    return [target for target in found if target is not None]


def _unknown(cfg: Config, key: str, place: str, part: str, valid: set[str], owner: Any) -> str:
    wanted = f'{place}.{part}'.lstrip('.')
    siblings = [f'{place}.{name}'.lstrip('.') for name in sorted(valid)]
    everywhere = [path for path, value in walk(cfg) if not isinstance(value, dict)]
    everywhere += [f'{node}.{name}' for node in _TYPELESS for name in sorted(_TYPELESS[node])]
    namesakes = [path for path in everywhere if path.split('.')[-1] == key.split('.')[-1]]
    nearest = (
        difflib.get_close_matches(wanted, siblings, 1, 0.6)
        or difflib.get_close_matches(key, namesakes, 1, 0.0)
        or difflib.get_close_matches(key, everywhere, 1, 0.5)
    )
    reason = f'{owner} takes no {part!r}' if owner else f'there is no {part!r} there'
    hint = f'; the nearest valid key is {nearest[0].lstrip(".")}' if nearest else ''
    return f'--cfg-options {key}: {wanted} does not exist ({reason}){hint}'


def _check_effect(cfg: Config, parts: list[str]) -> None:
    """Refuse a top-level name that was only used while the config file was read."""
    name = parts[0]
    if name not in cfg or name in _TYPELESS['']:
        return
    tree = _without_scopes(cfg.to_dict())
    value = tree[name]
    places = [
        path
        for path, other in walk(tree)
        if path != name
        and not path.startswith(f'{name}.')
        and other == value
        and (path.split('.')[-1] == name or (isinstance(value, (str, dict, list, tuple)) and value))
    ]
    if places:
        rest = ''.join(f'.{part}' for part in parts[1:])
        raise UserError(
            f'--cfg-options {".".join(parts)}: {name!r} was copied when the config was read, so '
            f'setting it now has no effect; set {" ".join(p + rest for p in places)}'
        )


def _move_data_root(cfg: Config, new: str) -> None:
    old = cfg.data_root

    def moved(node: Any) -> Any:
        if isinstance(node, dict):
            for key, value in node.items():
                node[key] = moved(value)
        elif isinstance(node, (list, tuple)):
            return type(node)(moved(value) for value in node)
        elif isinstance(node, str) and (node == old or node.startswith(old.rstrip('/') + '/')):
            return new.rstrip('/') + '/' + node[len(old) :].lstrip('/')
        return node

    for key, value in cfg.to_dict().items():
        cfg[key] = moved(value)
    # The config's hint at how to get its data is about the old place.
    cfg.pop('prepare_data', None)


def _without_scopes(node: Any) -> Any:
    """A copy without the ``_scope_`` marks that mmengine leaves at some places of a tree."""
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(_without_scopes(value) for value in node)
    return node
