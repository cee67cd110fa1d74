"""Imports point one way, and two things never share a name."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# A part imports what stands below it, and itself.
LAYERS = (
    'tools',
    'poolformer_dense.__main__',
    'poolformer_dense.commands',
    'poolformer_dense.__init__',  # it imports what it offers when that is used
    'poolformer_dense.api',
    'poolformer_dense.measure',
    'poolformer_dense.report',
    'poolformer_dense.exporting',
    'poolformer_dense.predict',
    'poolformer_dense.runner',
    'poolformer_dense.runtimes',
    'poolformer_dense.config',
    'poolformer_dense.data',
    'poolformer_dense',  # cli, errors, doctor
    'backbones',
    'backbones.ops',
)


def _modules() -> Iterator[tuple[str, ast.Module]]:
    for part in ('tools', 'poolformer_dense', 'backbones'):
        for path in sorted((ROOT / part).rglob('*.py')):
            parts = path.relative_to(ROOT).with_suffix('').parts
            yield '.'.join(parts), ast.parse(path.read_text())


def _imported(module: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split('.')[: -node.level] if node.level else []
            start = '.'.join([*above, *filter(None, [node.module])])
            yield from (f'{start}.{alias.name}' for alias in node.names)


def _layer(name: str) -> int | None:
    inside = [i for i, layer in enumerate(LAYERS) if f'{name}.'.startswith(f'{layer}.')]
    return max(inside, key=lambda i: len(LAYERS[i]), default=None)


def _public_names() -> Iterator[tuple[str, str]]:
    """Modules, functions and classes with their module.

    Backends of operators share names, and what Python offers is called as the commands are.
    """
    without = ('tools.', 'backbones.ops.', 'poolformer_dense.api', 'poolformer_dense.commands.')
    for module, tree in _modules():
        if module.startswith((*without, 'poolformer_dense.__main__')):
            continue
        yield module.split('.')[-1], module
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                yield node.name, module


def test_imports_point_down():
    wrong = {
        f'{module} imports {name}'
        for module, tree in _modules()
        for name in _imported(module, tree)
        if (layer := _layer(name)) is not None and layer < _layer(module)
    }
    assert not wrong


def test_the_model_needs_neither_toolbox():
    wrong = {
        f'{module} imports {name}'
        for module, tree in _modules()
        for name in _imported(module, tree)
        if module.startswith('backbones') and name.split('.')[0] in ('mmcv', 'mmdet', 'mmseg')
    }
    assert not wrong


def test_no_two_things_share_a_name():
    counts = Counter(name for name, _ in set(_public_names()) if not name.startswith('_'))
    shared = {name for name, count in counts.items() if count > 1}
    assert not shared
