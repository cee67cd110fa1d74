"""The console of a tool: what the user has to know, and of upstream only its results.

Upstream prints while it is imported, logs its environment, config and hooks, and warns of its own
interface. A `ToolConsole` sends all of that to the run's log file alone. Which text this is follows
from who says it; what a user's own code, this project or a toolbox's evaluation says is shown.
"""

from __future__ import annotations

import inspect
import logging
import os
import re
import sys
import sysconfig
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, TypeVar

from .errors import first_process

_UPSTREAM = {'faster_coco_eval', 'mmcv', 'mmdet', 'mmengine', 'mmseg', 'pycocotools'}
# Who of upstream is heard below the level of a warning, as module:function.
_HEARD = re.compile(
    r'mmengine\.hooks\.(?!checkpoint_hook:before_train)|mmengine\.evaluator\.'
    r'|mm(det|seg)\.evaluation\.|mmengine\.runner\.runner:resume$|.*:_summarize'
)
_STEPS = re.compile(r'mmengine\.hooks\.logger_hook:after_(train|val|test)_iter$')
# Upstream's warnings of its own interface, and of results that `EmptyResultHook` explains; all
# others that it logs may concern the user.
_REMARKS = re.compile(
    r'deprecated|is the alias of|prefix is not set|avg_non_ignore|draw is False|cudnn\.benchmark'
    r'|is skipped since its|is duplicate\. It is skipped|called more than once'
    r'|results of the whole dataset is empty|is an empty dict'
)
# Of Python's warnings, which libraries issue for developers, those that concern the user.
_CONCERNS = re.compile(r'worker processes in total')
# Where a text passes on its way from who says it.
_PASSED = re.compile(r'(logging|warnings|mmengine\.logging(\..*)?)$')
_LIBRARIES = tuple({sysconfig.get_path(name) for name in ('stdlib', 'purelib', 'platlib')})
_OURS = tuple(str(Path(__file__).parents[1] / name) for name in ('poolformer_dense', 'backbones'))

ASIDE = {'aside': True}
"""``extra`` of a record of ours that is for the log file alone."""

Logger = TypeVar('Logger', bound=logging.Logger)

_current: ContextVar[ToolConsole | None] = ContextVar('console', default=None)


def current_console() -> ToolConsole | None:
    """The console of the tool that runs; None in a program of somebody else, and with ``-v``."""
    return _current.get()


def adopt_logger(logger: Logger) -> Logger:
    """Return a logger that shows on the tool's console, if there is one, what concerns the user."""
    if (console := current_console()) is not None:
        console.adopt(logger)
    return logger


@contextmanager
def on_stderr() -> Iterator[None]:
    """Within the block what is shown goes to standard error: the other is for a result alone."""
    console = current_console()
    if console is None:
        with redirect_stdout(sys.stderr):
            yield
        return
    stream, console.stream = console.stream, sys.stderr
    try:
        yield
    finally:
        console.stream = stream


class ToolConsole:
    """A context in which standard output and Python's warnings show what concerns the user.

    It is a stream too, the one of what is shown.

    Attributes:
        stream: Standard output as it was.
        terminal: Whether it is a terminal that can show a live line.
    """

    def __init__(self) -> None:
        self.stream = sys.stdout
        self.terminal = self.stream.isatty() and os.environ.get('TERM', 'dumb') != 'dumb'
        self._above: Callable[[str], Any] | None = None
        self._pid = os.getpid()
        self._files: list[logging.Handler] = []
        # What came before there was a log file, and what a rank without one has to say.
        self._early: deque[logging.LogRecord] = deque(maxlen=1000)
        self._undo = ExitStack()

    def __enter__(self) -> ToolConsole:
        warned, listener = logging.getLogger('py.warnings'), _Listener(self._warn)
        token = _current.set(self)
        self._undo.callback(_current.reset, token)
        self._undo.enter_context(redirect_stdout(_Printed(self)))
        logging.captureWarnings(True)
        self._undo.callback(logging.captureWarnings, False)
        warned.addHandler(listener)
        self._undo.callback(warned.removeHandler, listener)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Put everything back: from here on all is shown."""
        self._undo.close()

    def adopt(self, logger: logging.Logger) -> None:
        """Let a logger show what concerns the user, and write the rest to its file alone."""
        files: list[logging.Handler]
        files = [each for each in logger.handlers if isinstance(each, logging.FileHandler)]
        for handler in logger.handlers:
            known = handler in files or getattr(handler, 'stream', self) is self
            if isinstance(handler, logging.StreamHandler) and not known:
                self._adopt(handler, bool(files))
        if files:
            self._files = files
            while self._early:
                self._write(self._early.popleft())

    def _adopt(self, handler: logging.StreamHandler, has_file: bool) -> None:
        shows = partial(self._shows, has_file=has_file)
        self._undo.callback(handler.setFormatter, handler.formatter)
        self._undo.callback(handler.setStream, handler.stream)
        self._undo.callback(handler.removeFilter, shows)
        handler.addFilter(shows)
        handler.setStream(self)
        if self.terminal:
            handler.setFormatter(_Plain())
        if not first_process():
            self._undo.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.ERROR)

    @contextmanager
    def live(self, above: Callable[[str], Any]) -> Iterator[None]:
        """Within the block a live line tells of the steps; ``above`` writes above it."""
        self._above = above
        try:
            yield
        finally:
            self._above = None

    def write(self, text: str) -> int:
        """Show a text."""
        if self._above is not None and os.getpid() == self._pid:
            self._above(text)
        else:  # a loader's worker has no live line
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def keep(self, text: str, level: int = logging.INFO) -> None:
        """Write a text to the log file alone."""
        create = logging.getLogRecordFactory()
        self._write(create('mmengine', level, '', 0, text, None, None))

    def _write(self, record: logging.LogRecord) -> None:
        if not self._files:
            self._early.append(record)
        for file in self._files:
            file.handle(record)

    def _shows(self, record: logging.LogRecord, has_file: bool) -> bool:
        if not has_file:
            self._write(record)
        speaker, _ = _speaker()
        if record.levelno >= logging.WARNING:
            return not (_is_upstream(speaker) and _REMARKS.search(record.getMessage()))
        if hasattr(record, 'aside') or (self._above is not None and _STEPS.match(speaker)):
            return False
        return hears(speaker)

    def _warn(self, record: logging.LogRecord) -> None:
        text, (speaker, path) = record.getMessage(), _speaker()
        library = path.startswith(_LIBRARIES) and not path.startswith(_OURS)
        if (library or _is_upstream(speaker)) and not _CONCERNS.search(text):
            self.keep(text, logging.WARNING)
        elif first_process():
            alive = self._above is not None and sys.stderr.isatty()
            (self if alive else sys.stderr).write(text)


def hears(speaker: str) -> bool:
    """Whether what somebody prints or informs of is shown, by ``module:function``."""
    return not _is_upstream(speaker) or bool(_HEARD.match(speaker))


def _is_upstream(speaker: str) -> bool:
    return re.split('[.:]', speaker, maxsplit=1)[0] in _UPSTREAM


def _speaker() -> tuple[str, str]:
    """Who logs, prints or warns: the innermost ``module:function`` that is not on the way."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        module = frame.f_globals.get('__name__') or ''
        if module != __name__ and not _PASSED.match(module):
            return f'{module}:{frame.f_code.co_name}', frame.f_code.co_filename
        frame = frame.f_back
    return '', ''


class _Printed:
    """Stands in for standard output: what upstream prints goes to the log file alone."""

    def __init__(self, console: ToolConsole) -> None:
        self._console, self._line = console, ''

    def write(self, text: str) -> int:
        speaker, _ = _speaker()
        if hears(speaker):
            return self._console.write(text)
        *lines, self._line = (self._line + text).split('\n')
        for line in filter(None, lines):
            self._console.keep(line)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._console.stream, name)


class _Listener(logging.Handler):
    """Hands every record on."""

    def __init__(self, listen: Callable[[logging.LogRecord], None]) -> None:
        super().__init__()
        self._listen = listen

    def emit(self, record: logging.LogRecord) -> None:
        self._listen(record)


class _Plain(logging.Formatter):
    """A message for a person at a terminal, its level told by a word."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno < logging.WARNING:
            return text
        colour = 33 if record.levelno < logging.ERROR else 31
        return f'\033[{colour}m{record.levelname.lower()}\033[0m: {text}'
