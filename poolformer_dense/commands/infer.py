"""Predict images and videos with a detector or a segmentor.

Writes OUT/pictures, and for detection OUT/results.json (COCO results) with OUT/images.json (what
its numbers stand for), for segmentation OUT/labels (PNGs) with OUT/classes.json.

Exit code: 0, 1 if an input could not be read (each is named), 2 if the call is wrong.
"""

import argparse
import sys
import time
from pathlib import Path

from ..cli import add_compile, add_config, add_unsafe_load, make_parser
from ..errors import UserError
from ..terminal import printable, say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file or URL, or what tools/export.py wrote')
    add('inputs', nargs='+', metavar='input', help='image, video, folder or "pattern*.jpg"')
    add('--out', type=Path, help='folder of the results (work_dirs/CONFIG/predictions)')
    add(
        '--score-thr',
        type=float,
        metavar='S',
        help='detections with this score or less are neither drawn nor written (0.3)',
    )
    add('--device', help='cpu, cuda, cuda:1 ... (a GPU if there is one)')
    add('--fuse', action='store_true', help='fold norms and layer scales of the backbone first')
    add(
        '--dtype',
        choices=('float32', 'bfloat16', 'float16'),
        default='float32',
        help='autocast to this dtype; float16 needs a GPU (float32)',
    )
    add('--batch', type=int, default=1, help='images of one forward pass (1)')
    add('--tile', type=int, metavar='SIZE', help='predict tiles of SIZE x SIZE pixels, joined')
    add(
        '--overlap',
        type=float,
        metavar='PART',
        help='the least part of a tile that neighbours have in common; at least as large as the '
        'largest object that matters (0.25)',
    )
    add('--tta', action='store_true', help="test-time augmentation, as the config's tta_pipeline")
    add('--no-pictures', action='store_true', help='write the results alone')
    add_compile(parser)
    add_unsafe_load(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.batch < 1:
        raise UserError(f'--batch {args.batch}: at least 1')
    if args.overlap is not None and args.tile is None:
        raise UserError('--overlap is for tiles: give --tile SIZE too')
    from ..api import load
    from ..config.load import load_config
    from ..predict.media import find_media
    from ..predict.result_files import infer_files
    from ..predict.tiles import OVERLAP, Tiling

    cfg = load_config(args.config, args.cfg_options)
    if args.score_thr is not None and cfg.default_scope != 'mmdet':
        raise UserError('--score-thr is for detection; label maps have no scores')
    overlap = OVERLAP if args.overlap is None else args.overlap
    tiling = None if args.tile is None else Tiling(args.tile, overlap)
    out = args.out or Path(cfg.work_dir, 'predictions')
    paths, nothing = find_media(args.inputs, leave_out=out)
    predictor = load(
        cfg,
        args.checkpoint,
        args.device,
        fuse=args.fuse,
        unsafe_load=args.unsafe_load,
        dtype=args.dtype,
        compiled=args.compile,
    )
    if args.tta:
        predictor = predictor.with_tta()
    for given, reason in nothing:
        warn(f'skipped {given}: {reason}')
    start = time.monotonic()
    done, unreadable = infer_files(
        predictor,
        paths,
        out,
        args.score_thr,
        args.batch,
        not args.no_pictures,
        report=warn,
        tiling=tiling,
    )
    seconds = time.monotonic() - start
    skipped = len(unreadable) + len(nothing)
    say(
        f'{done} results in {out} ({done / max(seconds, 1e-9):.1f} a second)'
        + (f'; {skipped} inputs skipped, named above' if skipped else '')
    )
    if skipped:
        sys.exit(1)


def warn(line: str) -> None:
    print(printable(line), file=sys.stderr)
