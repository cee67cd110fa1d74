"""Write the report of a training, or compare several: one HTML file that needs nothing else."""

import argparse
from pathlib import Path

from ..cli import make_parser
from ..terminal import say


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
    from ..report.page import write_report

    say(write_report(args.work_dirs, args.out))
