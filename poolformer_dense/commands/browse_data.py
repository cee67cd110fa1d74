"""Draw what the network sees: images after augmentation, with boxes, masks or label maps."""

import argparse

from ..cli import add_config, make_parser
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('out', metavar='OUT', help='folder of the pictures')
    add('--split', choices=('train', 'val', 'test'), default='train')
    add('--number', type=int, default=20, metavar='N', help='of pictures (20)')
    add('--seed', type=int, default=0, help='another number, other pictures (0)')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from rich.progress import track

    from ..config.browse import draw_samples
    from ..config.load import load_config

    cfg = load_config(args.config, args.cfg_options)
    pictures = draw_samples(cfg, args.out, args.split, args.number, args.seed)
    count = sum(1 for _ in track(pictures, 'drawing', total=args.number))
    say(f'{count} pictures in {args.out}')
