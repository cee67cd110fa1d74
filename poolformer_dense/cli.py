"""What the tools share: arguments, and errors that the user can fix as one line, not a traceback.

A tool imports torch and whatever brings it in `main`, after its arguments are parsed, so that
``--help`` and a wrong argument answer at once. Nothing here imports them earlier.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, NoReturn

from .console import ToolConsole, current_console
from .errors import RankError, UserError, first_process, told_launcher
from .literals import parse_value
from .object_stores import in_store, store_refusal
from .shipped import find_config
from .terminal import printable, printable_logs, say

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')

# The program and its arguments; None is what the process was started with.
_typed: ContextVar[tuple[str, Sequence[str]] | None] = ContextVar('typed', default=None)


def run_tool(main: Callable[[], None]) -> int:
    """Run a tool's main function; return its exit code.

    Returns:
        0, or 2 after an error the user can fix (of several processes the first prints it, or the
        one that it concerns alone), 1 after any other, or 130 after Ctrl-C.
    """
    _let_waiting_threads_give_way()
    with ToolConsole():
        return _run(main)


def run_command(program: str, words: Sequence[str], main: Callable[[], None]) -> int:
    """Run a tool's main function as `run_tool` does, with these words as its arguments."""
    token = _typed.set((program, words))
    try:
        return run_tool(main)
    finally:
        _typed.reset(token)


def _let_waiting_threads_give_way() -> None:
    """Shorten the time for which OpenMP's threads spin at a barrier, for the torch to come.

    GNU's runtime lets them spin for some 10 ms, on the processor that another process, or the
    thread they wait for, could have: beside two busy processes steps take twice the time.
    """
    if 'OMP_WAIT_POLICY' not in os.environ:
        os.environ.setdefault('GOMP_SPINCOUNT', '100000')


def _run(main: Callable[[], None]) -> int:
    try:
        with printable_logs():
            main()
    except UserError as error:
        return _report(error)
    except ValueError as error:
        from backbones.checkpoints import CheckpointError  # it is a ValueError

        if not isinstance(error, CheckpointError):
            return _report_unexpected()
        return _report(error)
    except Exception:
        return _report_unexpected()
    except KeyboardInterrupt:
        if first_process():
            print('\ninterrupted; --resume continues a training from its last checkpoint')
        return told_launcher(130)
    return 0


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser that prints a tool's docstring as it stands."""
    typed = _typed.get()
    return _Parser(
        typed and typed[0],
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


class _Parser(argparse.ArgumentParser):
    """A parser that prints a wrong argument as `printable` makes it, and takes no object store."""

    def parse_known_args(self, args=None, namespace=None):
        if args is None:
            typed = _typed.get()
            args = sys.argv[1:] if typed is None else typed[1]
        for word in args:
            name, _, value = word.rpartition('=') if word.startswith('-') else ('', '', word)
            if in_store(value):
                raise store_refusal(name or 'argument', value)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add the config, a file or the name of a shipped one, and ``--cfg-options``."""
    parser.add_argument(
        'config', type=find_config, help='config file, or the name of a shipped one'
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--verbose``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_Overrides,
        type=_key_value,
        metavar='KEY=VALUE',
        help='override entries of the config: key=value, with dots for depth and [] or () for '
        'lists, e.g. train_dataloader.batch_size=4 "model.backbone.out_indices=(1,2,3)"; words '
        """between commas are a list, except in a path or in quotes of its own, "key='a,b'"; """
        'data_root=PATH moves every path of the data',
    )
    parser.add_argument(
        '-v',
        '--verbose',
        action=_Verbose,
        nargs=0,
        help="show on the console all that mmengine and the toolboxes print, log and warn of; it's "
        'in the log file of a run anyway',
    )


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    add_compile(parser)
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    add_unsafe_load(parser)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Add ``--compile``."""
    parser.add_argument(
        '--compile',
        action='store_true',
        help='torch.compile backbone and neck; the first images take minutes longer',
    )


def add_unsafe_load(parser: argparse.ArgumentParser) -> None:
    """Add ``--unsafe-load``, which only a command line can set."""
    parser.add_argument(
        '--unsafe-load',
        action=_UnsafeLoad,
        nargs=0,
        default=False,
        help='run the code that a checkpoint holds instead of refusing it: only for files of '
        'people whom you trust with this account',
    )


class _Verbose(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        if (console := current_console()) is not None:
            console.close()


class _Overrides(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        earlier = getattr(namespace, self.dest) or {}
        pairs = (argument.partition('=')[::2] for argument in values)
        setattr(namespace, self.dest, earlier | {key: parse_value(text) for key, text in pairs})


class _UnsafeLoad(argparse.Action):
    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, True)
        if first_process():
            print(
                f'warning: {option_string} runs the code that checkpoints hold, with all your '
                'rights, on this machine',
                file=sys.stderr,
            )


def _report(error: Exception) -> int:
    if first_process() or isinstance(error, RankError):
        print(f'error: {printable(error)}', file=sys.stderr)
    return 2


def _report_unexpected() -> int:
    """Print the traceback of the error being handled, as Python does."""
    if sys.gettrace() is not None:  # a debugger wants the error itself
        raise
    say(traceback.format_exc().rstrip(), file=sys.stderr)
    return 1


def _key_value(argument: str) -> str:
    if '=' not in argument:
        raise argparse.ArgumentTypeError(
            f'{argument!r} is not of the form key=value; put quotes around a value with spaces, '
            'e.g. "load_from=/my files/a.pth"'
        )
    return argument
