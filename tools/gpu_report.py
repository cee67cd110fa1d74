#!/usr/bin/env python
"""Print the tables of a GPU check in Markdown, and which defaults its figures support."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument('folder', type=Path, nargs='?', default=Path('build/gpu_check'))
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from poolformer_dense.measure.gpu_check import report

    print(report(args.folder), end='')


if __name__ == '__main__':
    sys.exit(run_tool(main))
