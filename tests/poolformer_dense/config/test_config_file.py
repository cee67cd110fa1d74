"""What is wrong with a config file is one line that names the file and the line."""

from __future__ import annotations

import re

import pytest

from poolformer_dense.config.config_file import read_config
from poolformer_dense.errors import UserError

LAZY = 'from mmengine.config import read_base\nwith read_base():\n    from .{} import *\n'
# Name and text of the files; the first is read.
WRONG = {
    'a base is missing': (
        {'a.py': "\n_base_ = ['./b.py', 'near.py']", 'b.py': 'x = 1', 'nearer.py': ''},
        r'config \S*a\.py, line 2: its base \S*near\.py does not exist; the nearest name there is '
        r'nearer\.py',
    ),
    'a base of a base is missing': (
        {'a.py': "_base_ = 'b.py'", 'b.py': "_base_ = 'sub/c.py'"},
        r'config \S*b\.py, line 1: its base \S*sub/c\.py does not exist',
    ),
    'a base of mmdet is missing': (
        {'a.py': "_base_ = 'mmdet::_base_/none.py'"},
        r'config \S*a\.py, line 1: its base \S*_base_/none\.py does not exist',
    ),
    'a pure Python base is missing': (
        {'a.py': LAZY.format('gone')},
        r'config \S*a\.py, line 3: its base \S*gone\.py does not exist',
    ),
    'a file of its own is missing': (
        {'a.py': "x = 1\nopen('gone.txt')"},
        r'config \S*a\.py, line 2: FileNotFoundError: .*gone\.txt',
    ),
    'syntax': ({'a.py': 'x = 1\ny = (\n'}, r"config \S*a\.py, line 2: '\(' was never closed"),
    'syntax of a base': (
        {'a.py': "_base_ = 'b.py'", 'b.py': '\n\nx = = 1'},
        r'config \S*b\.py, line 3: invalid syntax',
    ),
    'syntax of a pure Python base': (
        {'a.py': LAZY.format('b'), 'b.py': 'x = ('},
        r"config \S*b\.py, line 1: '\(' was never closed",
    ),
    'a name': (
        {'a.py': 'x = dict(\n    y=1,\n    z=nope)'},
        r"config \S*a\.py, line 3: NameError: name 'nope' is not defined",
    ),
    'a name of a base': (
        {'a.py': "_base_ = 'b.py'", 'b.py': 'def f():\n    return nope\nx = f()'},
        r"config \S*b\.py, line 2: NameError: name 'nope' is not defined",
    ),
    'a name of a pure Python base': (
        {'a.py': LAZY.format('b'), 'b.py': 'x = 1\ny = nope'},
        r"config \S*b\.py, line 2: NameError: name 'nope' is not defined",
    ),
    "a base's variable": (
        {'a.py': "_base_ = 'b.py'\n\nx = _base_.yy", 'b.py': 'y = 1'},
        r"config \S*a\.py, line 3: AttributeError: .*'yy'",
    ),
    'two styles': (
        {'a.py': LAZY.format('b'), 'b.py': "_base_ = 'c.py'", 'c.py': ''},
        r'config \S*b\.py: it and its bases are of two styles',
    ),
    'a circle': (
        {'a.py': "_base_ = 'b.py'", 'b.py': "_base_ = 'a.py'"},
        r'config \S*\.py, line 1: it is a base of itself',
    ),
    'two bases with one key': (
        {'a.py': "_base_ = ['b.py', 'c.py']", 'b.py': 'x = 1', 'c.py': 'x = 2'},
        r"config \S*a\.py: KeyError: Duplicate key is not allowed among bases.*'x'",
    ),
    'JSON': ({'a.json': '{"x": 1,\n'}, r'config \S*a\.json: JSONDecodeError: '),
    'YAML': ({'a.yaml': 'x: [1,\ny: 2'}, r'config \S*a\.yaml: ParserError: '),
    'another format': ({'a.txt': 'x = 1'}, r'config \S*a\.txt: OSError: Only py/yml/yaml/json'),
    'no text': ({'a.py': b'\xff\xfe'}, r'config \S*a\.py: UnicodeDecodeError: '),
}


def _write(folder, files):
    for name, text in files.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(folder / next(iter(files)))


@pytest.mark.parametrize('case', WRONG)
def test_what_is_wrong_is_one_line(tmp_path, case):
    files, message = WRONG[case]
    with pytest.raises(UserError) as caught:
        read_config(_write(tmp_path, files))
    assert re.match(message, str(caught.value))
    assert '\n' not in str(caught.value)


def test_files_below_here_are_named_from_here(tmp_path, monkeypatch):
    path = _write(tmp_path, {'a.py': 'x = y'})
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r'^config a\.py, line 1: '):
        read_config(path)


@pytest.mark.parametrize('tool', ['train', 'verify_data', 'analyze_model'])
def test_tools_print_the_line_alone(run, tmp_path, tool):
    _write(tmp_path, {'a.py': "_base_ = 'none.py'"})
    done = run(f'{tool}.py', 'a.py', cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert lines == [f'error: config a.py, line 1: its base {tmp_path}/none.py does not exist']
    assert 'Traceback' not in done.stderr
