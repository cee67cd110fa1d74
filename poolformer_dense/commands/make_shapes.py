"""Draw the demo's data: shapes, in COCO's layout (ROOT/coco) and in ADE20K's (ROOT/ade)."""

from pathlib import Path

from ..cli import make_parser


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument('root', nargs='?', default='data/shapes')
    parser.add_argument('--train', type=int, default=240, help='training images')
    parser.add_argument('--val', type=int, default=40, help='validation images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    from ..measure.shapes import write_ade20k, write_coco

    write_coco(Path(args.root, 'coco'), args.train, args.val, args.seed)
    write_ade20k(Path(args.root, 'ade'), args.train, args.val, args.seed)
    print(f'{args.train} training and {args.val} validation images in {args.root}/coco and /ade')
