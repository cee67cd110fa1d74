"""The command ``poolformer-dense``: the tools of this project, by name."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from .cli import run_command

# Of each command its module in `commands`, in the order of the help.
COMMANDS = {
    'train': 'train',
    'test': 'test',
    'infer': 'infer',
    'export': 'export',
    'publish': 'publish',
    'report': 'report',
    'prepare-data': 'prepare_data',
    'convert-data': 'convert_data',
    'verify-data': 'verify_data',
    'browse-data': 'browse_data',
    'make-shapes': 'make_shapes',
    'convert-checkpoint': 'convert_checkpoint',
    'analyze': 'analyze_model',
    'benchmark': 'benchmark',
    'benchmark-evaluation': 'benchmark_evaluation',
    'compare-tiles': 'compare_tiles',
    'estimate-communication': 'estimate_communication',
    'build-ops': 'build_ops',
    'doctor': 'doctor',
}


def main() -> int:
    """Run the command that the first word names; return its exit code."""
    name, *rest = sys.argv[1:] or ['--help']
    if name in ('-h', '--help'):
        print(_help())
        return 0
    if name == '--version':
        from backbones.version import __version__

        print(f'poolformer-dense {__version__}')
        return 0
    if name not in COMMANDS:
        print(f'error: no command is called {name!r}: poolformer-dense --help', file=sys.stderr)
        return 2
    return run_command(f'poolformer-dense {name}', rest, _module(name).main)


def _module(name: str) -> Any:
    return importlib.import_module(f'.commands.{COMMANDS[name]}', __package__)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f'  {name:<{width}}  {_module(name).__doc__.splitlines()[0]}' for name in COMMANDS]
    return '\n'.join(
        [
            'usage: poolformer-dense COMMAND ... (COMMAND --help explains its arguments)',
            '',
            *lines,
            '',
            'A CONFIG is a file, or the name of a shipped one such as retinanet_poolformer_s12.',
        ]
    )


if __name__ == '__main__':
    sys.exit(main())
