"""What a class or a function takes by name."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from torch import nn


class Arguments(NamedTuple):
    """What can be given by name.

    Attributes:
        names: Those that are known.
        others: What becomes of others: an error, nothing, or whatever the code does with them.
    """

    names: frozenset[str] = frozenset()
    others: Literal['refused', 'ignored', 'used'] = 'refused'


@functools.cache
def arguments_of(target: Callable[..., Any]) -> Arguments:
    """Return what a class or function takes.

    ``**kwargs`` is followed where an ``__init__`` hands it to that of the next class, as far as
    the source shows that it does nothing else with it.
    """
    if inspect.isclass(target):
        return _inherited(target.__mro__)
    names, rest = _parameters(target)
    return Arguments(names, 'used' if rest else 'refused')


def _inherited(classes: tuple[type, ...], below: bool = False) -> Arguments:
    """What the first ``__init__`` of some classes takes; they are in the order of resolution."""
    first = next((i for i, owner in enumerate(classes) if '__init__' in vars(owner)), None)
    if first is None or classes[first] is nn.Module:
        return Arguments()
    if classes[first] is object:
        # Nobody hands names to it, unless the base that takes them is not installed.
        return Arguments(others='used' if below else 'refused')
    init = vars(classes[first])['__init__']
    names, rest = _parameters(init)
    if hasattr(init, '__wrapped__'):  # by a decorator that may translate other names
        return Arguments(names, 'used')
    if rest is None:
        return Arguments(names)
    read = _read_from(init, rest, classes[first].__name__)
    if read is None:
        return Arguments(names, 'used')
    found, handed_on = read
    if not handed_on:
        return Arguments(names | found, 'ignored')
    above = _inherited(classes[first + 1 :], below=True)
    return Arguments(names | found | above.names, above.others)


def _parameters(function: Callable[..., Any]) -> tuple[frozenset[str], str | None]:
    """The names that a function takes, and what it calls the rest, None if it takes no more."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # it is not written in Python
        return frozenset(), 'kwargs'
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    rest = (p.name for p in parameters if p.kind is inspect.Parameter.VAR_KEYWORD)
    names = frozenset(p.name for p in parameters if p.kind in named) - {'self'}
    return names, next(rest, None)


def _read_from(
    init: Callable[..., Any], rest: str, owner: str
) -> tuple[frozenset[str], bool] | None:
    """How an ``__init__`` uses its ``**rest``.

    Returns:
        The names that it looks up, and whether it hands the rest to the next class's; None if it
        does anything else with it, or the source is not there.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(init)))
    except (OSError, TypeError, SyntaxError):
        return None
    names, understood, handed_on = set(), 0, False
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Call(func=ast.Name('super'))) as function):
                spread = [k for k in node.keywords if k.arg is None and _is_name(k.value, rest)]
                if ast.unparse(function) in (f'super({owner}, self).__init__', 'super().__init__'):
                    understood += len(spread)
                    handed_on |= bool(spread)
            case ast.Call(
                func=ast.Attribute(ast.Name(name), 'get' | 'pop' | 'setdefault'),
                args=[ast.Constant(str(key)), *_],
            ) if name == rest:
                names.add(key)
                understood += 1
            case ast.Subscript(ast.Name(name), ast.Constant(str(key))) if name == rest:
                names.add(key)
                understood += 1
            case ast.Compare(ast.Constant(str(key)), [ast.In()], [ast.Name(name)]) if name == rest:
                names.add(key)
                understood += 1
    uses = sum(_is_name(node, rest) for node in ast.walk(tree))
    return (frozenset(names), handed_on) if understood == uses else None


def _is_name(node: ast.AST, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
