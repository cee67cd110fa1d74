"""The command poolformer-dense, beside the tools of the same names."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import pytest

from poolformer_dense.__main__ import COMMANDS, main

# What one runs to develop this project, and needs a clone for.
IN_CLONES = {'measure_speed', 'count_launches', 'demo', 'gpu_report', 'gpu_stage', 'make_results'}


@pytest.fixture
def type_in(monkeypatch, capsys):
    """Type words after ``poolformer-dense``; return the exit code and what is printed."""

    def run(*words):
        monkeypatch.setattr(sys, 'argv', ['poolformer-dense', *map(str, words)])
        try:
            code = main()
        except SystemExit as end:
            code = end.code
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_every_tool_is_a_command_and_runs_the_same_code(root):
    tools = {path.stem for path in root.glob('tools/*.py')} - IN_CLONES
    assert tools == set(COMMANDS.values())
    assert tools == {p.stem for p in root.glob('poolformer_dense/commands/*.py')} - {'__init__'}
    for name in tools:
        code = (root / f'tools/{name}.py').read_text()
        assert f'from poolformer_dense.commands.{name} import main' in code


def test_help_lists_every_command(type_in):
    for words in ([], ['--help']):
        code, printed, _ = type_in(*words)
        assert code == 0
        assert re.findall(r'^  ([\w-]+) +\w', printed, re.MULTILINE) == list(COMMANDS)


def test_a_command_names_itself_in_its_help(type_in):
    code, printed, _ = type_in('convert-data', '--help')
    assert code == 0
    assert printed.startswith('usage: poolformer-dense convert-data ')


def test_wrong_commands_and_configs_are_one_line(type_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, line = type_in('trian')
    assert (code, line) == (2, "error: no command is called 'trian': poolformer-dense --help\n")
    code, _, line = type_in('train', 'configs/retinanet_poolformer_s12.py')
    assert code == 2
    assert line.count('\n') == 1
    assert line.endswith('a shipped config is called retinanet_poolformer_s12\n')
    code, _, line = type_in('train', 'retinanet_poolfomer_s12')
    assert (code, line.count('\n')) == (2, 1)
    assert line.endswith('a shipped config is called retinanet_poolformer_s12\n')


def test_help_imports_nothing_heavy():
    code = (
        'import sys; from poolformer_dense.__main__ import main; sys.argv[1:] = ["--help"]; main();'
        'print(*sys.modules, file=sys.stderr)'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    imported = set(done.stderr.split())
    assert 'poolformer_dense.commands.train' in imported
    assert not imported & {'torch', 'numpy', 'cv2', 'mmengine', 'rich', 'PIL', 'matplotlib'}


@pytest.mark.slow
def test_help_answers_at_once():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, '-m', 'poolformer_dense', '--help'], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5
