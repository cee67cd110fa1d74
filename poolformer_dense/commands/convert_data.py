"""Make COCO annotation files from Pascal VOC's XML or YOLO's text files; images stay in place.

    tools/convert_data.py voc data/mine data/mine/coco       # JPEGImages, Annotations, ImageSets
    tools/convert_data.py yolo data/mine/data.yaml data/mine/coco

What can't be converted is told by file and line, and nothing is written then, unless with --drop.
"""

import argparse
import os
import sys
from pathlib import Path

from ..cli import make_parser
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    kinds = parser.add_subparsers(dest='kind', required=True, metavar='voc|yolo')
    voc = kinds.add_parser('voc', help='boxes of Pascal VOC: an XML file for each image')
    voc.add_argument('source', type=Path, help='folder with JPEGImages and Annotations')
    voc.add_argument('--classes', nargs='+', default=[], help='in this order; default: all, sorted')
    voc.add_argument('--images', default='JPEGImages', help='another folder of the images')
    voc.add_argument('--annotations', default='Annotations', help='another folder of the XML files')
    yolo = kinds.add_parser('yolo', help='boxes and polygons of YOLO: a text file for each image')
    yolo.add_argument('source', type=Path, help='YAML file of the data set')
    for sub in (voc, yolo):
        sub.add_argument('out', type=Path, help='folder for train.json, val.json ...')
        sub.add_argument(
            '--drop',
            action='store_true',
            help="leave out objects and images that can't be converted",
        )
        sub.add_argument('--examples', type=int, default=10, help='problems to list; 0: all (10)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..data.coco_builder import write_splits
    from ..data.convert_voc import convert_voc
    from ..data.convert_yolo import convert_yolo

    if args.kind == 'voc':
        builders = convert_voc(args.source, args.classes, args.images, args.annotations, True)
    else:
        builders = convert_yolo(args.source, True)
    problems = [problem for builder in builders.values() for problem in builder.problems]
    for problem in problems[: args.examples or None]:
        say(problem, file=sys.stderr)
    if args.examples and len(problems) > args.examples:
        say(f'... {len(problems) - args.examples} more; --examples 0: all', file=sys.stderr)
    paths = write_splits(builders, args.out, args.drop)
    for path, builder in zip(paths, builders.values(), strict=True):
        say(f'{path}: {builder.summary()}')
        for note, count in builder.notes.items():
            say(f'  {count} {note}')
    if problems:
        say(f'left out: {len(problems)}')
    builder = next(iter(builders.values()))
    root = Path(os.path.relpath(builder.root))
    ann_file = Path(os.path.relpath(paths[0], builder.root)).as_posix()
    say(
        f"For the config: data_root = '{root.as_posix()}/', data_prefix = dict(img=''),\n"
        f"ann_file = '{ann_file}', classes = {tuple(builder.categories.values())}"
    )
