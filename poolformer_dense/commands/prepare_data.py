"""Bring COCO 2017, ADE20K, BCCD or CamVid to the layout that the configs expect; see docs/data.md.

Downloads, or takes what is there already (--from), unpacks and checks. Interrupted at any moment,
the same command resumes where it stopped.
"""

import argparse
import sys
from pathlib import Path

from ..cli import make_parser
from ..data.archives import DATASETS


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('dataset', choices=DATASETS)
    add('--root', type=Path, default=Path('data'), help='the only place written to (data)')
    add(
        '--from',
        type=Path,
        dest='source',
        metavar='DIR_OR_ZIP',
        help='a folder with the archives or the unpacked data set, or one archive; only read',
    )
    add('--copy', action='store_true', help='copy an unpacked --from instead of linking to it')
    add('--mirror', metavar='URL', help='a folder with the archives, to download')
    add('--keep-archives', action='store_true', help='keep downloads after they are unpacked')
    add(
        '--verify-only',
        action='store_true',
        help='check what is there, write nothing; the exit code is 2 if something is wrong',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..data.prepare import check_prepared, prepare

    dataset = DATASETS[args.dataset]
    if args.verify_only:
        check_prepared(dataset, args.root, args.source)
        return
    try:
        prepare(
            dataset,
            args.root,
            args.source,
            mirror=args.mirror,
            copy=args.copy,
            keep_archives=args.keep_archives,
        )
    except KeyboardInterrupt:
        print('\ninterrupted; run the same command again to resume', file=sys.stderr)
        sys.exit(130)
