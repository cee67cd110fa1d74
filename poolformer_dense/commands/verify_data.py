"""Verify the data that a config names, and say in one table what is wrong with it.

Exit code: 0 without faults, 1 with any or with data that can't be verified, 2 if the config or the
paths are wrong.
"""

import argparse
import sys
from pathlib import Path

from ..cli import add_config, make_parser
from ..console import on_stderr
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add(
        '--fix',
        type=Path,
        metavar='OUT',
        help='folder for a cleaned copy of each annotation file that has faults',
    )
    add('--examples', type=int, default=3, metavar='N', help='examples of each kind; 0: all (3)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..config.datasets import named_sources
    from ..config.load import load_config
    from ..data.audit import audit, format_audits

    with on_stderr():
        cfg = load_config(args.config, args.cfg_options)
        sources, unknown = named_sources(cfg)
        results, unread = audit(sources, fix=args.fix, progress=True)
    unread += unknown
    say(format_audits(results, unread, args.examples))
    if unread or any(result.faults for result in results):
        sys.exit(1)
