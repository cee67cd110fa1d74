"""Export a detector or a segmentor, and compare the file with the model.

RetinaNet up to the boxes before NMS (with --nms after it), Mask R-CNN and Cascade Mask R-CNN up to
boxes and masks, segmentors to the label map. Preprocessing is in the file, resizing is not.

Exit code: 0, 1 if the file does not compute what the model does, 2 if the call is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import add_config, add_unsafe_load, make_parser
from ..errors import UserError
from ..runtimes import SMALLEST, SUFFIXES
from ..terminal import say

if TYPE_CHECKING:
    from ..exporting.parity import Parity

SHOWN = 20  # reasons of ties


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file or URL')
    add('--to', choices=SUFFIXES, required=True, help='.onnx, .xml with .bin, or .pt2')
    add('--out', type=Path, help='the file (work_dirs/CONFIG/CONFIG.onnx, .xml or .pt2)')
    add('--dynamic', action='store_true', help='any batch, height and width')
    add(
        '--size',
        nargs=2,
        type=int,
        metavar=('H', 'W'),
        help='the one size otherwise (what the test pipeline makes of 480 x 640)',
    )
    add('--nms', action='store_true', help="NMS in the graph (RetinaNet; Mask R-CNN's always is)")
    add('--paste', action='store_true', help='masks of the size of the image, not of 28 x 28 bins')
    add('--dtype', choices=('float32', 'bfloat16'), default='float32', help='of stored weights')
    add(
        '--int8',
        metavar='CALIBRATION',
        help='compute in 8-bit integers (OpenVINO), scaled by images: train or val for the '
        "config's, or a folder",
    )
    add('--calibration-images', type=int, default=64, metavar='N', help='of --int8 (64)')
    add(
        '--max-drop',
        type=float,
        metavar='POINTS',
        help="keep layers in float32 until AP or mIoU on the config's test data falls by no more",
    )
    add('--fuse', action='store_true', help='fold norms and layer scales of the backbone first')
    add('--parity', nargs='+', default=[], metavar='IMAGE', help='compare on these (drawn ones)')
    add_unsafe_load(parser)
    return parser.parse_args()


def print_parity(title: str, parity: Parity, unit: str) -> None:
    sizes = Counter('x'.join(map(str, size)) for size in parity.sizes)
    print(f'{title} (batches: {", ".join(f"{n} of {size}" for size, n in sizes.items())}):')
    if parity.errors:
        print(f'  largest raw error, of the largest magnitude: {parity.worst:.2e}')
    print(
        f'  {unit}: {parity.same} of {parity.total} agree ({parity.agreement:.4%})'
        + (f'; {len(parity.ties)} more are there or not by rounding:' if parity.ties else '')
    )
    for reason, count in Counter(parity.ties).most_common(SHOWN):
        print(f'    {reason}' + (f' ({count} times)' if count > 1 else ''))


def main() -> None:
    args = parse_args()
    if args.size and (args.dynamic or min(args.size) < SMALLEST):
        raise UserError(f'--size: at least {SMALLEST} {SMALLEST}, and not with --dynamic')
    from ..api import export
    from ..config.load import load_config

    cfg = load_config(args.config, args.cfg_options)
    path = args.out or Path(cfg.work_dir, Path(args.config).stem + SUFFIXES[args.to])
    if path.suffix != SUFFIXES[args.to]:
        raise UserError(f'--out {path}: --to {args.to} writes a {SUFFIXES[args.to]} file')
    exported = export(
        cfg,
        args.checkpoint,
        path,
        size=args.size and tuple(args.size),
        dynamic=args.dynamic,
        nms=args.nms,
        paste=args.paste,
        dtype=args.dtype,
        fuse=args.fuse,
        int8=args.int8,
        calibration_images=args.calibration_images,
        max_drop=args.max_drop,
        images=args.parity,
        unsafe_load=args.unsafe_load,
    )
    weights = path.with_suffix('.bin') if args.to == 'openvino' else path
    say(f'{path}: {weights.stat().st_size / 1e6:.1f} MB')
    if exported.rounding is not None:
        title = 'with the float32 weights, to see what the rounding does'
        print_parity(title, exported.rounding, exported.unit)
    print_parity('with the model', exported.parity, exported.unit)
    if args.int8:
        print(f'8 bits change results: tools/test.py {args.config} {path} tells by how much')
    elif not exported.parity.holds:
        compared = exported.parity.total or exported.parity.errors
        print(
            'the file does NOT compute what the model does'
            if compared
            else 'NOTHING was compared: the model finds nothing there; give photographs by --parity'
        )
        sys.exit(1)
