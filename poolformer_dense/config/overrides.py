"""``--cfg-options`` that can't be misspelled: a key must exist, or be an argument of its class."""

from __future__ import annotations

import copy
import difflib
import re
from typing import Any

from mmengine.config import Config

from ..errors import UserError
from .arguments import Arguments
from .misspelled import KEYS, MARKS, TYPELESS, arguments_at, misspelled
from .registered import find_types, registered_names
from .walk import scoped_nodes, type_name, walk


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
    for found in misspelled(merged) if overrides else ():
        key = difflib.get_close_matches(found.place, overrides, 1, 0.0)[0]
        raise UserError(f'--cfg-options {key}: {found}')
    cfg.merge_from_dict(overrides)


def _check_key(cfg: Config, merged: Config, key: str) -> None:
    parts = key.split('.')
    _check_effect(cfg, parts)
    old, new = dict(walk(cfg)), dict(walk(merged))
    depth = next((i for i in range(len(parts)) if '.'.join(parts[: i + 1]) not in old), None)
    if depth is None:
        return
    place, part = '.'.join(parts[:depth]), parts[depth]
    node = new[place]
    taken: Arguments | None = Arguments(KEYS)
    for where, each, scope in scoped_nodes(merged, cfg.default_scope) if place else ():
        if where == place:
            taken = arguments_at(merged, place, each, scope)
    is_new_hook = place == 'default_hooks' and 'type' in (node.get(part) or {})
    if is_new_hook or part in MARKS or (taken and taken.others == 'used'):
        return
    valid = set(taken.names if taken else ()) | set(old.get(place) or ())
    if part not in valid:
        raise UserError(_unknown(cfg, key, place, part, valid, type_name(node)))


def _check_value(cfg: Config, key: str, value: Any) -> None:
    """Refuse a type that is not registered, and what is of another kind than the config's."""
    scope = cfg.get('default_scope')
    if key.split('.')[-1] == 'type' and isinstance(value, str) and not find_types(value, scope):
        nearest = difflib.get_close_matches(value, registered_names(scope), 1, 0.6)
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


def _unknown(cfg: Config, key: str, place: str, part: str, valid: set[str], owner: str) -> str:
    wanted = f'{place}.{part}'.lstrip('.')
    siblings = [f'{place}.{name}'.lstrip('.') for name in sorted(valid)]
    everywhere = [path for path, value in walk(cfg) if not isinstance(value, dict)]
    everywhere += [f'{node}.{name}' for node in TYPELESS for name in sorted(TYPELESS[node])]
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
    if name not in cfg or name in KEYS:
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
