"""Reading a config file: whatever is wrong with it is one line."""

from __future__ import annotations

import difflib
import os
import re
import traceback
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError
from .walk import walk

# The functions of mmengine that read a file, whose name is their `filename`.
_READERS = ('fromfile', '_file2dict', '_is_lazy_import', '_parse_lazy_import')
# Said where one file is of the text style and another of the pure Python style.
_MIXED = 'it and its bases are of two styles: _base_ = ..., and read_base() with imports; take one'


def read_config(path: str) -> Config:
    """Read a config and its bases, of the text style or of mmengine's pure Python style.

    What it names in ``custom_imports`` is not imported.

    Raises:
        UserError: There is no such config, a base is missing, or one of the files is wrong: the
            message names the file and the line.
    """
    if not Path(path).is_file():
        raise UserError(f'config {path} does not exist (looked at {Path(path).absolute()})')
    try:
        cfg = Config.fromfile(path, import_custom_modules=False)
        for _ in walk(cfg):  # pure Python configs import what they name when it is looked at
            pass
        return cfg
    except Exception as error:  # a config is a program: it can raise anything
        raise UserError(_explain(path, error)) from error


def shown_path(file: str) -> str:
    """Return how a message names a file: from here if it is below, or else the whole path."""
    shown = os.path.relpath(file)
    return file if shown.startswith('..') else shown


def _explain(path: str, error: Exception) -> str:
    """Say in which of the files, in which line, reading a config failed, and why."""
    files, lines = [os.path.abspath(path)], {}
    for frame, line in traceback.walk_tb(error.__traceback__):
        name = frame.f_locals.get('filename')
        if frame.f_code.co_name in _READERS and isinstance(name, str):
            if os.path.abspath(name) != files[-1]:
                files.append(os.path.abspath(name))
        elif (run := os.path.abspath(frame.f_code.co_filename)) in files:
            lines[run] = line
    if isinstance(error, SyntaxError) and error.lineno:
        return f'{_place(files[-1], error.lineno)}: {error.msg}'
    missing = None if lines.get(files[-1]) else _missing_file(error)
    if missing:
        files = [file for file in files if file != missing]
        return f'{_place(files[-1], _line_with(files[-1], missing))}: {_missing_base(missing)}'
    if isinstance(error, RecursionError):
        return f'{_place(files[-1], _line_with(files[-1], "_base_"))}: it is a base of itself'
    if 'in the inheritance chain must match' in str(error):
        return f'{_place(files[-1], None)}: {_MIXED}'
    text = str(error.args[0] if isinstance(error, KeyError) and error.args else error)
    text = ' '.join(text.split()).partition('! ')[0]
    return f'{_place(files[-1], lines.get(files[-1]))}: {type(error).__name__}: {text}'


def _place(file: str, line: int | None) -> str:
    return f'config {shown_path(file)}' + (f', line {line}' if line else '')


def _line_with(file: str, base: str) -> int | None:
    """The number of the first line that has the name of a base."""
    with open(file, encoding='utf-8') as lines:
        return next((i for i, line in enumerate(lines, 1) if Path(base).stem in line), None)


def _missing_file(error: Exception) -> str | None:
    """The base that is not there, if that is the error."""
    named = re.match(r'(?:file ")?(.+?)"? (?:does not exist|not found!)', str(error))
    path = getattr(error, 'filename', None) or (named and named.group(1))
    return os.path.abspath(path) if path and not os.path.exists(path) else None


def _missing_base(base: str) -> str:
    folder, name = os.path.split(base)
    siblings = os.listdir(folder) if os.path.isdir(folder) else []
    nearest = difflib.get_close_matches(name, siblings, 1, 0.6)
    hint = f'; the nearest name there is {nearest[0]}' if nearest else ''
    return f'its base {base} does not exist{hint}'
