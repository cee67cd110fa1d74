"""The ``.pt2`` archive of a program of torch.export: stripped when written, checked before read.

torch's loader unpickles what an archive says is pickled, hands its expressions to sympy, which runs
them, and calls any function of torch that a node names. So an archive is checked as a whole, and
what was checked is packed anew for torch.
"""

from __future__ import annotations

import ast
import io
import json
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from backbones.checkpoints.formats import READERS, check_container
from backbones.checkpoints.refusals import Refused

_MEMBERS = re.compile(
    r'archive_format|archive_version|byteorder|\.data/(version|serialization_id)'
    r'|data/weights/(weight_\d+|model_weights_config\.json)'
    r'|data/constants/(tensor_\d+|model_constants_config\.json)'
    r'|data/sample_inputs/model\.pt|models/model\.json|extra/metadata\.json'
)
_MODEL, _SAMPLE = 'models/model.json', 'data/sample_inputs/model.pt'
_CONFIGS = ('data/weights/model_weights_config.json', 'data/constants/model_constants_config.json')
# Expressions of sizes: sympy's for the program, Python's for its guards.
# `**`, and towers of powers, would take for ever.
_EXPRESSION = re.compile(
    r"((?!\*\*)[-+*/%(),.<>=! \[\]\d]|'[suz]\w{1,8}'|'image'"
    r'|\b([suz]\d+|Add|Mul|Pow|Max|Min|Mod|Integer|Symbol|Eq|Ne|Ge|Gt|Le|Lt|GreaterThan|LessThan'
    r'|StrictGreaterThan|StrictLessThan|Equality|Unequality|And|Or|Not|FloorDiv|CleanDiv|CeilDiv'
    r'|PythonMod|Piecewise|ExprCondPair|positive|nonnegative|integer|true|false|True|False'
    r'|L|image|size|stride|min|max|and|or|not)\b)*'
)
_LONGEST = 20_000
_EXPONENT = re.compile(r'(Integer\()?-?\d\)?')
_FUNCTIONS = re.compile(
    r'_operator\.(add|sub|mul|floordiv|truediv|mod|neg|ge|gt|le|lt|eq|ne|and_|or_|getitem)'
    r'|torch\.sym_(min|max|not|int|float|ite)|torch\.ops\.higher_order\.while_loop'
)
_OPERATOR = re.compile(r'torch\.ops\.aten\.(\w+)\.(\w+)')
# Text that operators take; any other, such as a file's name, is not for them.
_TEXTS = frozenset(
    {'rounding_mode', 'approximate', 'mode', 'padding_mode', 'reduce', 'equation', 'assert_msg'}
)
_NOTHING = frozenset({'as_operator', 'as_custom_obj', 'as_opaque', 'as_nested_tensors'})
_TREES = frozenset({None, 'builtins.tuple', 'builtins.list', 'builtins.dict'})


def stripped(archive: bytes) -> bytes:
    """Return an archive without the example input, and without places in source files."""
    members = _members(archive)
    model = json.loads(members[_MODEL])
    for each in _dictionaries(model):
        if 'target' in each and isinstance(each.get('metadata'), dict):
            each['metadata'] = {}
    return _packed({**members, _MODEL: json.dumps(model).encode(), _SAMPLE: b''})


def checked(archive: bytes) -> bytes:
    """Return an archive that torch can load without running what is in it.

    Raises:
        Refused: It has something that no export of a detector or a segmentor has.
    """
    try:
        members = _members(archive)
        _check_members(members)
    except Refused:
        raise
    except Exception as error:  # whatever a damaged archive comes up with
        raise Refused('it is no whole program of torch.export') from error
    return _packed(members)


def _check_members(members: dict[str, bytes]) -> None:
    texts = {name: json.loads(members[name]) for name in (_MODEL, *_CONFIGS)}
    for name in _CONFIGS:
        for each in _dictionaries(texts[name]):
            if each.get('use_pickle'):
                raise Refused(f'{name} says that a tensor is pickled')
    if members[_SAMPLE]:
        _check_pickle(members[_SAMPLE])
    model = texts[_MODEL]
    for each in _dictionaries(model):
        _check_entry(each)
    constraints = model.get('range_constraints') or {}
    for text in (*constraints, *(model.get('guards_code') or [])):
        _check_expression(text)


def _check_entry(entry: dict[str, Any]) -> None:
    if named := _NOTHING & entry.keys():
        raise Refused(f'it holds {min(named)[3:]}, which is code')
    if 'expr_str' in entry:
        _check_expression(entry['expr_str'])
    if 'target' in entry and 'inputs' in entry:
        _check_function(entry['target'])
        if entry.get('metadata'):
            raise Refused(f'a node has metadata {min(entry["metadata"])!a}')
    for name in ('in_spec', 'out_spec'):
        if isinstance(text := entry.get(name), str) and text:
            for each in _dictionaries(json.loads(text)):
                if each.get('type') not in _TREES:
                    raise Refused(f'it names the type {str(each["type"])[:60]!a}')


def _check_expression(text: Any) -> None:
    whole = isinstance(text, str) and len(text) <= _LONGEST and _EXPRESSION.fullmatch(text)
    if not whole or _has_tower(text):
        raise Refused(f'it holds {str(text)[:60]!a} where a size should be')


def _has_tower(expression: str) -> bool:
    """Whether an expression has a power of a power, or one that is no small number.

    Raises:
        SyntaxError: It is none of Python's.
    """
    for node in ast.walk(ast.parse(expression.strip(), mode='eval')):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == 'Pow':
            base, *exponent = map(ast.unparse, node.args)
            if 'Pow(' in base or not all(map(_EXPONENT.fullmatch, exponent)):
                return True
    return False


def _check_function(target: Any) -> None:
    """Refuse what is not arithmetic of sizes, a loop, or an operator on tensors and numbers."""
    if isinstance(target, str) and _FUNCTIONS.fullmatch(target):
        return
    found = _OPERATOR.fullmatch(target) if isinstance(target, str) else None
    overload = None
    if found is not None:
        packet = getattr(torch.ops.aten, found[1], None)
        overload = getattr(packet, found[2], None)
    if overload is None:
        raise Refused(f'it calls {str(target)[:60]!a}')
    for argument in overload._schema.arguments:
        if 'str' in str(argument.type) and argument.name not in _TEXTS:
            raise Refused(f'it calls {target}, which takes a text')


def _check_pickle(content: bytes) -> None:
    file: Any = io.BytesIO(content)
    READERS[check_container(file, len(content), '.pt')](file, len(content), torch.device('meta'))


def _members(archive: bytes) -> dict[str, bytes]:
    """The entries by their name without the folder.

    Raises:
        Refused: One is not of such an archive, or is compressed.
    """
    members: dict[str, bytes] = {}
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        for entry in file.infolist():
            _, _, name = entry.filename.partition('/')
            if not _MEMBERS.fullmatch(name) or name in members:
                raise Refused(f'it has an entry named {entry.filename[:80]!a}')
            if entry.compress_type or entry.file_size > len(archive):
                raise Refused(f'its entry {name!a} is compressed')
            members[name] = file.read(entry)
    return members


def _packed(members: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, 'w') as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(f'archive/{name}'), content)
    return packed.getvalue()


def _dictionaries(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield every dictionary in a tree of JSON."""
    waiting = [tree]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
