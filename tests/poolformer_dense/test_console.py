"""What a tool's console shows, and what goes to the log file alone."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest
from mmengine.logging import MMLogger

from poolformer_dense.console import ASIDE, ToolConsole, adopt_logger, current_console, on_stderr


def _says(module: str, statement: str, path: str = 'somewhere.py', **names: object) -> None:
    """Run a statement as if it stood in a function of a module."""
    code = compile(f'def say():\n    {statement}\nsay()', path, 'exec')
    exec(code, {'__name__': module, **names})


@pytest.fixture
def log(tmp_path):
    """The log file that a run's logger writes, and that logger."""

    def build() -> MMLogger:
        return adopt_logger(MMLogger(str(tmp_path), log_file=str(tmp_path / 'run.log')))

    return tmp_path / 'run.log', build


def test_prints_of_upstream_go_to_the_log_file_alone(capsys, log):
    path, build = log
    with ToolConsole():
        _says('mmdet.datasets', 'print("Could not import OneDL.")')
        build()
        _says('pycocotools.coco', 'print("creating", "index...")')
        _says('my_project.hooks', 'print("mine")')
        print('the tool')
    assert capsys.readouterr().out == 'mine\nthe tool\n'
    assert 'Could not import OneDL.\n' in path.read_text()
    assert 'creating index...\n' in path.read_text()


@pytest.mark.parametrize(
    ('module', 'statement', 'shown'),
    [
        ('mmengine.runner.runner', 'logger.info("Config:")', False),
        ('mmengine.hooks.logger_hook', 'logger.info("Epoch(train) [1][10/60]")', True),
        ('mmdet.evaluation.metrics', 'logger.info("bbox_mAP_copypaste: 0.1")', True),
        ('mmengine.fileio', 'logger.warning("FileClient will be deprecated in future.")', False),
        ('mmengine.hooks', 'logger.warning("not saved")', True),
        ('mmengine.runner.runner', 'logger.error("lost")', True),
        ('mmdet.evaluation', 'logger.error("results of the whole dataset is empty")', False),
        ('my_project', 'logger.info("deprecated by nobody")', True),
        ('my_project', 'logger.warning("deprecated by me")', True),
        ('poolformer_dense.runner', 'logger.info("takes its place", extra=ASIDE)', False),
    ],
)
def test_who_logs_what_decides(capsys, log, module, statement, shown):
    path, build = log
    with ToolConsole():
        _says(module, statement, logger=build(), ASIDE=ASIDE)
    text = statement.split('"')[1]
    assert (text in capsys.readouterr().out) == shown
    assert text in path.read_text()


def test_the_log_file_has_what_was_logged_before_it(capsys, log):
    path, build = log
    early = MMLogger('before the run')
    with ToolConsole():
        adopt_logger(early)
        early.warning('a finding of preflight')
        _says('mmengine.registry', 'logger.info("a remark")', logger=early)
        build()
    assert 'a finding of preflight' in capsys.readouterr().out
    assert [line.split(' - ')[-1] for line in path.read_text().splitlines()] == [
        'a finding of preflight',
        'a remark',
    ]


def test_warnings_of_libraries_go_to_the_log_file_alone(capsys, log):
    path, build = log
    library = f'{next(p for p in sys.path if p.endswith("site-packages"))}/some/library.py'
    warn = 'warnings.warn(text, UserWarning)'
    with ToolConsole(), warnings.catch_warnings():
        warnings.simplefilter('always')
        build()
        _says('mmseg.losses', warn, warnings=warnings, text='avg_non_ignore')
        _says('some.library', warn, library, warnings=warnings, text='pkg_resources')
        _says('torch.utils', warn, library, warnings=warnings, text='9 worker processes in total')
        _says('my_project', warn, warnings=warnings, text='mine')
    shown = capsys.readouterr().err
    assert 'worker processes' in shown
    assert 'mine' in shown
    for text in ('avg_non_ignore', 'pkg_resources'):
        assert text not in shown
        assert text in path.read_text()


def test_other_ranks_show_errors_alone(capsys, monkeypatch, log):
    monkeypatch.setenv('RANK', '1')
    with ToolConsole():
        logger = log[1]()
        logger.warning('said by the first')
        logger.error('mine alone')
    shown = capsys.readouterr().out
    assert 'said by the first' not in shown
    assert 'mine alone' in shown


def test_all_is_put_back(capsys):
    stdout, showing, logger = sys.stdout, warnings.showwarning, MMLogger('put back')
    [handler] = logger.handlers
    before = handler.stream, handler.formatter, list(handler.filters), handler.level
    with ToolConsole() as console:
        adopt_logger(logger)
        adopt_logger(logger)
        assert current_console() is console
        console.close()  # as -v does
        assert current_console() is None
        _says('mmengine.runner.runner', 'logger.info("Config:")', logger=logger)
    assert capsys.readouterr().out.endswith('Config:\n')
    assert sys.stdout is stdout
    assert warnings.showwarning is showing
    assert (handler.stream, handler.formatter, list(handler.filters), handler.level) == before


@pytest.mark.parametrize('quiet', [True, False])
def test_a_result_stands_alone_on_standard_output(capsys, quiet):
    with ToolConsole() as console:
        if not quiet:
            console.close()
        with on_stderr():
            print('a note')
        print('the result')
    shown = capsys.readouterr()
    assert shown.out == 'the result\n'
    assert shown.err == 'a note\n'


def test_a_terminal_gets_messages_without_their_time(monkeypatch, log):
    screen = io.StringIO()
    screen.isatty = lambda: True
    monkeypatch.setattr(sys, 'stdout', screen)
    monkeypatch.setenv('TERM', 'xterm')
    with ToolConsole():
        logger = log[1]()
        logger.info('Data: 240 images')
        logger.log(logging.WARNING, 'look')
    assert screen.getvalue() == 'Data: 240 images\n\033[33mwarning\033[0m: look\n'
