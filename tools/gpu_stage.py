#!/usr/bin/env python
"""Run one stage of the GPU check; tools/gpu_check.sh runs them all.

It writes STAGE.json to the folder as it goes, and prints a short table last. Exit code 1 if
something is wrong.
With --dry it runs on a CPU, in Triton's interpreter, with tiny shapes: to test the check itself.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool

# As the library has them, which takes seconds to import.
STAGES = (
    'env', 'kernels', 'bandwidth', 'backbone', 'compiles', 'amp', 'detector', 'exact', 'nccl'
)  # fmt: skip


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('stage', choices=STAGES)
    parser.add_argument('--out', type=Path, default=Path('build/gpu_check'), metavar='FOLDER')
    parser.add_argument(
        '--minutes',
        type=float,
        default=math.inf,
        help='begin nothing new after them',
    )
    parser.add_argument('--dry', action='store_true', help='on a CPU: figures mean nothing')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.dry:
        os.environ['TRITON_INTERPRET'] = '1'  # Triton reads it when it is imported
    import torch
    from rich.console import Console

    from poolformer_dense.errors import UserError
    from poolformer_dense.measure import gpu_check

    if not args.dry and not torch.cuda.is_available():
        raise UserError(f'torch {torch.__version__} finds no GPU; --dry runs without one')
    setting = gpu_check.Setting(args.dry, time.monotonic() + 60 * args.minutes)
    result = gpu_check.StageResult(args.stage, args.dry, args.out / f'{args.stage}.json')
    try:
        gpu_check.STAGES[args.stage](setting, result)
    except Exception as error:  # what was found before counts
        result.failed.append(f'{type(error).__name__}: {error}')
    result.end()
    result.show(Console())
    if result.failed:
        sys.exit(1)


if __name__ == '__main__':
    sys.exit(run_tool(main))
