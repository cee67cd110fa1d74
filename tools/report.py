#!/usr/bin/env python
"""Write the report of a training, or compare several: one HTML file that needs nothing else."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool
from poolformer_dense.terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('work_dirs', nargs='+', type=Path, metavar='WORK_DIR', help='several are compared')
    add(
        '--out',
        type=Path,
        metavar='FILE',
        help='the page; by default WORK_DIR/report.html, of several comparison.html beside them',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from poolformer_dense.report.page import write_report

    say(write_report(args.work_dirs, args.out))


if __name__ == '__main__':
    sys.exit(run_tool(main))
