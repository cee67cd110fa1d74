"""What the tools share: errors the user can mend are one line, not a traceback."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from mmengine.config import DictAction

from backbones.checkpoints import CheckpointError

from .errors import RankError, UserError, first_process

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')


def run_tool(main: Callable[[], None]) -> int:
    """Run a tool's main function; return its exit code.

    Returns:
        0, or 2 after an error the user can mend (of several processes the first prints it, or the
        one that it concerns alone), or 130 after Ctrl-C.
    """
    try:
        main()
    except (UserError, CheckpointError) as error:
        if first_process() or isinstance(error, RankError):
            print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\ninterrupted; a training goes on from its last checkpoint with --resume')
        return 130
    return 0


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    add_config_options(parser)
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='job launcher')
    add_unsafe_load(parser)


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


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        type=_key_value,
        metavar='KEY=VALUE',
        help='override entries of the config: key=value, with dots for depth and [] or () for '
        'lists, e.g. train_dataloader.batch_size=4 "model.backbone.out_indices=(1,2,3)"; '
        'data_root=PATH moves every path of the data',
    )


class _UnsafeLoad(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, True)
        if first_process():
            print(
                f'warning: {option_string} runs the code that checkpoints hold, with all your '
                'rights, on this machine',
                file=sys.stderr,
            )


def _key_value(argument: str) -> str:
    if '=' not in argument:
        raise argparse.ArgumentTypeError(f'{argument!r} is not of the form key=value')
    return argument
