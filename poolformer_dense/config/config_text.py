"""Reading the text of a config, as mmengine writes it, without running it."""

from __future__ import annotations

import ast
import unicodedata
from keyword import iskeyword
from typing import Any


def parse_config(text: Any) -> dict[str, Any]:
    """Return what the text of a config says, without running it; what is no literal stays text."""
    try:
        lines = ast.parse(text).body
        pairs = [(line.targets, line.value) for line in lines if isinstance(line, ast.Assign)]
        return {t.id: _value(v) for targets, v in pairs for t in targets if isinstance(t, ast.Name)}
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return {}


def is_plain(node: Any) -> bool:
    """Whether mmengine writes what `parse_config` returned as it is.

    It writes keys without escapes, those that are identifiers as names of arguments, and when it
    reads a file again, it replaces ``{{...}}``: there a text could become code.
    """
    if isinstance(node, dict):
        return all(map(_is_plain_key, node)) and all(map(is_plain, node.values()))
    if isinstance(node, list):
        return all(map(is_plain, node))
    return not isinstance(node, str) or '{{' not in node


def _is_plain_key(key: Any) -> bool:
    if not isinstance(key, str):
        return True
    if key.isidentifier():  # written as a keyword argument, and read as Python reads names
        return not iskeyword(key) and unicodedata.is_normalized('NFKC', key)
    return key.isprintable() and {*key}.isdisjoint('\'"\\{')


def _value(node: ast.expr) -> Any:
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(entry) for entry in node.elts]
    if isinstance(node, ast.Dict):
        keys = [key and _value(key) for key in node.keys]
        return dict(zip(keys, map(_value, node.values), strict=True))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        merged: dict[Any, Any] = {}
        for argument in node.args:
            merged |= _value(argument)
        return merged | {entry.arg: _value(entry.value) for entry in node.keywords}
    if isinstance(node, ast.Name) and node.id in ('inf', 'nan'):
        return float(node.id)
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
