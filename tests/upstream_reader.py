"""Reads from a syntax tree what a file changes of upstream's modules, classes and objects.

Upstream is every package that is not the standard library's and not ours. Reported are, of a module
or class of upstream, of a name annotated with an upstream type, and of what hangs from either:

- a change of an attribute by assignment, deletion, `setattr`, `vars(x)` or `x.__dict__`;
- a private name;

and a switch of the whole process, where a module is imported or an object constructed. Configs,
data samples, tensors and contexts of autograd are data, and may be changed.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import inspect
import re
import sys
from dataclasses import dataclass, field

OWN = {'backbones', 'poolformer_dense', 'tools'}
DATA = {
    'BaseDataElement', 'Config', 'ConfigDict', 'DetDataSample', 'FunctionCtx', 'InstanceData',
    'Parameter', 'PixelData', 'SegDataSample', 'Tensor', 'cfg', 'ndarray',
}  # fmt: skip
SWITCHES = {
    'atexit.register', 'cv2.ocl.setUseOpenCL', 'cv2.setNumThreads', 'faulthandler.enable',
    'logging.basicConfig', 'logging.disable', 'matplotlib.use', 'multiprocessing.set_start_method',
    'numpy.random.seed', 'numpy.seterr', 'os.environ', 'os.environ.pop', 'os.environ.setdefault',
    'os.environ.update', 'os.putenv', 'os.register_at_fork', 'random.seed',
    'resource.setrlimit', 'signal.pthread_sigmask', 'signal.signal', 'sys.modules',
    'sys.setrecursionlimit', 'torch.manual_seed', 'torch.serialization.add_safe_globals',
    'torch.use_deterministic_algorithms', 'warnings.filterwarnings', 'warnings.simplefilter',
}  # fmt: skip


@dataclass
class OwnClass:
    """A class of ours: upstream's class behind it, if any, and the names that it defines."""

    bases: list[str]
    upstream: str | None
    names: set[str] = field(default_factory=set)


class Classes:
    """All classes of ours, by name; two of one name count as one."""

    def __init__(self, trees: list[ast.Module]) -> None:
        self.known: dict[str, OwnClass] = {}
        for tree in trees:
            imports = imports_of(tree)
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    self._add(node, imports)

    def _add(self, node: ast.ClassDef, imports: dict[str, str]) -> None:
        bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
        dotted = [name for base in bases if (name := dotted_name(base, imports))]
        found = self.known.setdefault(node.name, OwnClass([], None))
        found.bases += [name.split('.')[-1] for name in dotted]
        found.upstream = next(filter(is_upstream, dotted), found.upstream)
        for child in ast.walk(node):
            if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store):
                found.names |= {child.attr} if is_self(child.value) else set()
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                found.names.add(child.name)
            elif isinstance(child, (ast.Assign, ast.AnnAssign)):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                found.names |= {t.id for t in targets if isinstance(t, ast.Name)}

    def upstream(self, name: str) -> str | None:
        """Upstream's class that one of ours derives from."""
        own = self.known.get(name)
        if own is None:
            return None
        return own.upstream or next(filter(None, map(self.upstream, self._parents(name))), None)

    def names(self, name: str) -> set[str]:
        """What a class of ours and those of ours above it define."""
        own = self.known[name].names if name in self.known else set()
        return own.union(*map(self.names, self._parents(name)))

    def _parents(self, name: str) -> list[str]:
        return [base for base in self.known[name].bases if base in self.known and base != name]


class Reader(ast.NodeVisitor):
    """Collects what one file does that it must not, as line numbers with a text."""

    def __init__(self, tree: ast.Module, classes: Classes) -> None:
        self.classes = classes
        self.imports = imports_of(tree)
        self.scopes: list[dict[str, str]] = [{}]
        self.owners: list[str] = []
        self.moments = ['import']  # when the code runs: at import, at construction, or in a call
        self.found: set[tuple[int, str]] = set()
        self.visit(tree)

    # --- what a name stands for ---

    def origin(self, node: ast.AST) -> str | None:
        """Upstream's dotted name of an expression, through a type for what is annotated."""
        if isinstance(node, ast.Name):
            typed = next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
            return typed or self.imports.get(node.id)
        if isinstance(node, ast.Attribute):
            if is_self(node.value) and self.owners:
                base = self.classes.upstream(self.owners[-1])
                typed = self.scopes[0].get(f'{self.owners[-1]}.{node.attr}')
                ours = node.attr in self.classes.names(self.owners[-1])
                ours = ours and not (base and node.attr in privates_of(base))
                return typed or (f'{base}.{node.attr}' if base and not ours else None)
            value = self.origin(node.value)
            return f'{value}.{node.attr}' if value else None
        if isinstance(node, ast.Subscript):
            return self.origin(node.value)
        if isinstance(node, ast.Call):
            if ast.unparse(node.func) == 'cast':
                return self.known_type(node.args[0])
            is_type = isinstance(node.func, ast.Name) and node.func.id == 'type' and node.args
            return self.origin(node.args[0] if is_type else node.func)
        return None

    def annotate(self, key: str, annotation: ast.AST | None, scope: int = -1) -> None:
        if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
            annotation = ast.parse(annotation.value, mode='eval').body
        if isinstance(annotation, ast.BinOp):
            self.annotate(key, annotation.left, scope)
            self.annotate(key, annotation.right, scope)
        elif isinstance(annotation, ast.Tuple):  # of isinstance
            for choice in annotation.elts:
                self.annotate(key, choice, scope)
        elif name := self.known_type(annotation):
            self.scopes[scope][key] = name

    def known_type(self, annotation: ast.AST | None) -> str | None:
        """Upstream's dotted name of a type, None for others."""
        name = dotted_name(annotation, self.imports) if annotation else None
        return name if name and is_upstream(name) else None

    # --- what is reported ---

    def report(self, node: ast.AST, text: str) -> None:
        self.found.add((node.lineno, text))

    def changed(self, node: ast.AST, owner: ast.AST, what: str) -> None:
        name = self.origin(owner)
        if name and not DATA & set(name.split('.')):
            self.report(node, f'changes {name}{what}')

    def changed_namespace(self, node: ast.AST, namespace: ast.AST) -> None:
        """Report a change of ``vars(x)`` or ``x.__dict__``."""
        if isinstance(namespace, ast.Call) and ast.unparse(namespace.func) == 'vars':
            self.changed(node, namespace.args[0], ' by vars')
        elif isinstance(namespace, ast.Attribute) and namespace.attr == '__dict__':
            self.changed(node, namespace.value, '.__dict__')

    def private(self, node: ast.AST, name: str | None) -> None:
        parts = (name or '').split('.')
        first = next((i for i, part in enumerate(parts) if is_private(part)), None)
        if not name or first is None or not is_upstream(name):
            return
        start = max((i for i in range(first) if parts[i][:1].isupper()), default=0)
        self.report(node, f'private: {".".join(parts[start : first + 1])}')

    def switched(self, node: ast.AST, name: str | None) -> None:
        if not name or self.moments[-1] == 'call':
            return
        setter = name.startswith('torch.') and name.split('.')[-1].startswith('set_')
        if (
            name in SWITCHES | {'os.environ', 'sys.modules'}
            or setter
            or name.endswith('.register_scheme')
        ):
            self.report(node, f'switches {name} at {self.moments[-1]}')

    # --- the tree ---

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.owners.append(node.name)
        base = self.classes.upstream(node.name)
        overridden = privates_of(base) if base else frozenset()
        for child in node.body:
            if isinstance(child, ast.FunctionDef) and child.name in overridden:
                self.private(child, f'{base}.{child.name}')
        for child in ast.walk(node):
            if isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Attribute):
                self.annotate(f'{node.name}.{child.target.attr}', child.annotation, 0)
        self.generic_visit(node)
        self.owners.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        constructors = ('__init__', '__new__', '__post_init__', '__init_subclass__')
        self.moments.append('construction' if node.name in constructors else 'call')
        self.scopes.append({})
        arguments = node.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            self.annotate(argument.arg, argument.annotation)
        self.generic_visit(node)
        self.scopes.pop()
        self.moments.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if '__name__' not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if isinstance(node.target, ast.Name):
            self.annotate(node.target.id, node.annotation)
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._alias(target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._alias(node.target, node.iter)
        self.generic_visit(node)

    def _alias(self, target: ast.AST, value: ast.AST) -> None:
        """Let a name stand for an attribute or an element of what upstream owns."""
        name = self.origin(value) if isinstance(value, (ast.Attribute, ast.Subscript)) else None
        if name and isinstance(target, ast.Name) and is_upstream(name):
            self.scopes[-1][target.id] = name

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if not isinstance(node.ctx, ast.Load):
            self.changed(node, node.value, f'.{node.attr}')
        self.private(node, self.origin(node))
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        name = self.origin(node.value)
        if not isinstance(node.ctx, ast.Load):
            self.changed_namespace(node, node.value)
            if name in ('os.environ', 'sys.modules'):
                self.switched(node, name)
        self.generic_visit(node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            self.private(node, f'{node.module}.{alias.name}' if not node.level else None)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.private(node, alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.id if isinstance(node.func, ast.Name) else ''
        method = node.func.attr if isinstance(node.func, ast.Attribute) else ''
        self.switched(node, self.origin(node.func))
        if function in ('setattr', 'delattr') or method in ('__setattr__', '__delattr__'):
            self.changed(node, node.args[0], f' by {function or method}')
        if method in ('clear', 'pop', 'setdefault', 'update'):
            self.changed_namespace(node, node.func.value)
        if function in ('getattr', 'hasattr', 'setattr') and len(node.args) > 1:
            name, attribute = self.origin(node.args[0]), node.args[1]
            if name and isinstance(attribute, ast.Constant):
                self.private(node, f'{name}.{attribute.value}')
        if function == 'isinstance' and isinstance(node.args[0], ast.Name):
            self.annotate(node.args[0].id, node.args[1])
        self.generic_visit(node)


def imports_of(tree: ast.Module) -> dict[str, str]:
    """What imported names stand for, the standard library's included, ours left out."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split('.')[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {
                alias.asname or alias.name: f'{node.module}.{alias.name}' for alias in node.names
            }
    return {name: full for name, full in names.items() if full.split('.')[0] not in OWN}


def dotted_name(node: ast.AST, imports: dict[str, str]) -> str | None:
    if isinstance(node, ast.Attribute):
        value = dotted_name(node.value, imports)
        return f'{value}.{node.attr}' if value else None
    return imports.get(node.id, node.id) if isinstance(node, ast.Name) else None


def is_upstream(name: str) -> bool:
    """Whether a dotted name is of a package that is neither ours nor the standard library's."""
    first, _, rest = name.partition('.')
    return bool(rest) and first not in OWN | sys.stdlib_module_names


def is_private(name: str) -> bool:
    return name.startswith('_') and not name.startswith('__')


def is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ('self', 'cls')


@functools.cache
def privates_of(name: str) -> frozenset[str]:
    """Private names of a class of upstream, which has to be installed for that."""
    module, _, attribute = name.rpartition('.')
    try:
        owner = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
        return frozenset()
    names = set(dir(owner))
    for base in owner.__mro__ if inspect.isclass(owner) else []:
        with contextlib.suppress(OSError, TypeError):  # written in C
            names |= set(re.findall(r'\bself\.(\w+)(?:: [^=]+)? = ', inspect.getsource(base)))
    return frozenset(filter(is_private, names))


def read(text: str, classes: Classes | None = None) -> set[tuple[int, str]]:
    """Return what a file does, each with its line."""
    tree = ast.parse(text)
    return Reader(tree, classes or Classes([tree])).found
