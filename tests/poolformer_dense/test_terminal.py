"""Names out of files and configs do not steer a terminal, a log or a page."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from poolformer_dense.cli import make_parser, run_tool
from poolformer_dense.errors import UserError
from poolformer_dense.terminal import printable, printable_lines, say

# Colours the terminal, sets its title, overrides the direction, moves back, ends the line.
EVIL = 'a\x1b[31mb\x1b]0;owned\x07c\u202ed\x08\x9b1me\nf\udcff'
SAFE = r'a\x1b[31mb\x1b]0;owned\x07c\u202ed\x08\x9b1me\nf\udcff'


@pytest.mark.parametrize(
    ('text', 'shown'),
    [
        (EVIL, SAFE),
        ('Straße, 漢字, सड़क', 'Straße, 漢字, सड़क'),
        ('न\u200cम 👩\u200d🌾', 'न\u200cम 👩\u200d🌾'),
        ('no\u00a0break', 'no\u00a0break'),
        ('line\u2028line\r\x85', r'line\u2028line\r\x85'),
        ('\u2066isolated\u2069 \ufeffmark', r'\u2066isolated\u2069 \ufeffmark'),
        (Path('a\tb'), r'a\tb'),
        ('', ''),
    ],
)
def test_only_what_steers_is_escaped(text, shown):
    assert printable(text) == shown
    shown.encode()


def test_lines_stay_lines():
    assert printable_lines('a\tb\n\x1b[2Jc\r\n') == 'a\tb\n\\x1b[2Jc\\r\n'


def test_what_is_said_can_be_printed(capsys):
    say(f'a line\n{EVIL}')
    assert capsys.readouterr().out == 'a line\n' + SAFE.replace(r'\n', '\n') + '\n'


def _fail():
    raise UserError(f'{EVIL} is wrong')


def _speak():
    logging.getLogger('test').warning('of %s', EVIL)


def _crash():
    raise KeyError(0, EVIL) from ValueError(EVIL)


def test_an_error_is_one_line(capsys):
    assert run_tool(_fail) == 2
    assert capsys.readouterr().err == f'error: {SAFE} is wrong\n'


def test_what_a_tool_logs_is_printable(caplog):
    factory = logging.getLogRecordFactory()
    assert run_tool(_speak) == 0
    assert caplog.messages == ['of ' + SAFE.replace(r'\n', '\n')]
    assert logging.getLogRecordFactory() is factory


def test_a_traceback_is_printable(capsys, monkeypatch):
    monkeypatch.setattr('sys.gettrace', lambda: None)  # coverage traces as a debugger does
    assert run_tool(_crash) == 1
    shown = capsys.readouterr().err
    assert 'Traceback (most recent call last):' in shown
    assert 'ValueError: a\\x1b[31mb' in shown
    assert '\x1b' not in shown


def test_a_wrong_argument_is_printable(capsys):
    with pytest.raises(SystemExit):
        make_parser('A tool.').parse_args([EVIL])
    assert capsys.readouterr().err.endswith(f'unrecognized arguments: {SAFE}\n')


def test_tools_with_arguments_have_that_parser(root):
    tools = [*root.glob('tools/*.py'), *root.glob('poolformer_dense/commands/*.py')]
    own = [path.name for path in tools if 'ArgumentParser(' in path.read_text()]
    assert own == ['demo.py']  # which takes none


def _steering(text: str) -> list[str]:
    return [c for c in text if printable(c) != c and c != '\n']


def test_tools_print_names_of_files_and_classes_as_escapes(run, root, shapes, tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    name = 'a\x1b[31m\nb\u202e.jpg'
    (folder / name).write_bytes(b'')
    content = json.loads((shapes / 'coco/annotations/instances_val2017.json').read_text())
    content['images'] = [dict(content['images'][0], file_name=name)]
    content['annotations'] = []
    content['categories'][0]['name'] = '\x1b[31mdisc'
    (folder / 'instances.json').write_text(json.dumps(content))
    options = [
        'train_dataloader=None', 'val_dataloader=None', 'train_cfg=None', 'val_cfg=None',
        'val_evaluator=None', 'optim_wrapper=None', 'param_scheduler=None',
        f'test_dataloader.dataset.data_root={folder}',
        'test_dataloader.dataset.ann_file=instances.json',
        'test_dataloader.dataset.data_prefix.img=',
    ]  # fmt: skip
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    done = run('verify_data.py', config, '--cfg-options', *options, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert r'a\x1b[31m\nb\u202e.jpg' in done.stdout
    assert r'\x1b[31mdisc' in done.stdout
    assert not _steering(done.stdout)
