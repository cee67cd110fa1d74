"""The values of a command line: numbers, sequences and text, as they are typed."""

from __future__ import annotations

import ast
import re
from typing import Any

_BRACKETS = {'(': ')', '[': ']', '{': '}'}
_CONSTANTS: dict[str, bool | None] = {'true': True, 'false': False, 'None': None}


def parse_value(text: str) -> Any:
    """Return the value that a text stands for.

    Quotes make text, ``()`` a tuple, ``[]`` a list, ``{}`` a dictionary in Python's syntax and
    ``dict(type=IoUMetric)`` one without quotes; what is inside brackets may be without them. Words
    and numbers between commas are a list, but a path stays text. Spaces are kept, except around the
    entries of a sequence.

    >>> parse_value("('traffic light', stop sign)")
    ('traffic light', 'stop sign')
    >>> parse_value('0.9,0.99')
    [0.9, 0.99]
    >>> parse_value('/a b/c,d.pth')
    '/a b/c,d.pth'
    """
    stripped = text.strip()
    entries = _split(stripped)
    if not stripped or entries is None:
        return text
    if len(entries) > 1 or stripped[-1] == ',':
        return text if _is_path(stripped) else [parse_value(entry) for entry in entries]
    if stripped.startswith('dict(') and stripped[-1] == ')':
        pairs = [entry.partition('=') for entry in _split(stripped[5:-1].strip()) or []]
        if all(key.strip().isidentifier() and equals for key, equals, _ in pairs):
            return {key.strip(): parse_value(value) for key, _, value in pairs}
    if stripped[0] in '([' and stripped[-1] == _BRACKETS[stripped[0]]:
        inside = [parse_value(entry) for entry in _split(stripped[1:-1].strip()) or []]
        return tuple(inside) if stripped[0] == '(' else inside
    if stripped[0] in '\'"{':
        try:
            return ast.literal_eval(stripped)
        except (ValueError, SyntaxError):
            return text
    return _parse_word(stripped, text)


def _parse_word(word: str, text: str) -> Any:
    for number in (int, float):
        try:
            return number(word)
        except ValueError:
            continue
    return _CONSTANTS.get(word if word == 'None' else word.lower(), text)


def _split(text: str) -> list[str] | None:
    """Split at the commas outside quotes and brackets; None if those do not match."""
    entries, closing, quote, start = [], '', '', 0
    for i, char in enumerate(text):
        if quote:
            quote = '' if char == quote else quote
        elif char in '\'"' and (i == 0 or text[i - 1] in '([{,: '):
            quote = char
        elif char in _BRACKETS:
            closing = _BRACKETS[char] + closing
        elif char in _BRACKETS.values():
            if not closing.startswith(char):
                return None
            closing = closing[1:]
        elif char == ',' and not closing:
            entries.append(text[start:i].strip())
            start = i + 1
    if quote or closing:
        return None
    last = text[start:].strip()
    return entries + [last] * bool(last)


def _is_path(text: str) -> bool:
    """Whether a text with commas is a path: it has a folder, or ends like a file."""
    return text[0] not in '\'"([{' and re.search(r'[/\\]|\.[A-Za-z]\w*$', text) is not None
