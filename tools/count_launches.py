#!/usr/bin/env python
"""Count what a training step of a preset asks of a GPU, without one, and print the table.

Launches of kernels, calls of torch's operators and bytes through memory, for a block of each stage
and for the whole backbone, in bfloat16 autocast: the Triton backend and plain torch. It needs the
package triton. How it counts stands in poolformer_dense/measure/launches.py.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('preset', nargs='?', default='poolformer_s12', help='(poolformer_s12)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    os.environ.setdefault('TRITON_INTERPRET', '1')  # nothing is compiled
    from importlib.util import find_spec

    from backbones.presets import PRESETS
    from poolformer_dense.errors import UserError

    if args.preset not in PRESETS:
        raise UserError(f'unknown preset {args.preset}; choose from {", ".join(PRESETS)}')
    if find_spec('triton') is None:
        raise UserError('the kernels need the package triton: pip install triton')
    from poolformer_dense.measure.launches import launch_table

    print(launch_table(args.preset))


if __name__ == '__main__':
    sys.exit(run_tool(main))
