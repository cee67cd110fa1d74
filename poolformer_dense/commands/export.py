"""Export a detector or a segmentor, and compare the file with the model.

RetinaNet up to the boxes before NMS (with --nms after it), Mask R-CNN and Cascade Mask R-CNN up to
boxes and masks, segmentors to the label map. Preprocessing is in the file, resizing is not.

Exit code: 0, 1 if the file does not compute what the model does, 2 if the call is wrong.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..cli import add_config, add_unsafe_load, make_parser
from ..errors import UserError
from ..terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from torch import nn

    from ..export.parity import Parity

# Long and short sides of the drawn images that a dynamic export is compared on.
DRAWN = ((128, 96), (101, 67), (224, 160), (517, 333), (1088, 800))
SUFFIXES = {'onnx': '.onnx', 'torch-export': '.pt2'}
SMALLEST = 32  # as the library has it, which takes seconds to import


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file or URL')
    add('--to', choices=SUFFIXES, required=True, help='.onnx or .pt2')
    add('--out', type=Path, help='the file (work_dirs/CONFIG/CONFIG.onnx or .pt2)')
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
    add('--fuse', action='store_true', help='fold norms and layer scales of the backbone first')
    add('--parity', nargs='+', default=[], metavar='IMAGE', help='compare on these (drawn ones)')
    add_unsafe_load(parser)
    return parser.parse_args()


def print_parity(title: str, parity: Parity, unit: str) -> None:
    sizes = ', '.join('x'.join(map(str, size)) for size in parity.sizes)
    print(
        f'{title} (batches {sizes}):\n'
        f'  largest raw error, of the largest magnitude: {parity.worst:.2e}\n'
        f'  {unit}: {parity.same} of {parity.total} agree ({parity.agreement:.4%})'
    )


def drawn_scenes(size: tuple[int, ...] | None) -> Iterator[np.ndarray]:
    from ..measure.shapes import draw_scene

    sides = DRAWN if size is None else ((max(size), min(size)),) * 3
    for i, each in enumerate(sides):
        yield draw_scene((5, i), *each).image


def main() -> None:
    args = parse_args()
    if args.size and (args.dynamic or min(args.size) < SMALLEST):
        raise UserError(f'--size: at least {SMALLEST} {SMALLEST}, and not with --dynamic')
    from ..config.load import load_config
    from ..export.exporter import (
        parity_batches,
        read_resized,
        usual_size,
        write_export,
    )
    from ..export.parity import measure_parity
    from ..export.program import round_weights
    from ..predict.media import find_media
    from ..predict.predictor import fold, load_predictor

    cfg = load_config(args.config, args.cfg_options)
    path = args.out or Path(cfg.work_dir, Path(args.config).stem + SUFFIXES[args.to])
    if path.suffix != SUFFIXES[args.to]:
        raise UserError(f'--out {path}: --to {args.to} writes a {SUFFIXES[args.to]} file')
    paths = find_media(args.parity)[0] if args.parity else []
    predictor = load_predictor(cfg, args.checkpoint, 'cpu', unsafe_load=args.unsafe_load)
    reference = copy.deepcopy(predictor.model)
    if args.fuse:
        fold(predictor.model)
    size = None if args.dynamic else tuple(args.size or usual_size(predictor))
    bfloat16 = args.dtype == 'bfloat16'
    graph, run = write_export(predictor, path, size, bfloat16, args.nms, args.paste)
    say(f'{path}: {path.stat().st_size / 1e6:.1f} MB')

    def compare_with(model: nn.Module) -> Parity:
        images = read_resized(predictor, paths) if paths else drawn_scenes(size)
        return measure_parity(graph, model, run, parity_batches(images, size))

    unit = 'detections' if predictor.detects else 'pixels'
    if bfloat16:
        effect = compare_with(reference)
        print_parity('with the float32 weights, to see what the rounding does', effect, unit)
        reference = predictor.model
        round_weights(reference)
    parity = compare_with(reference)
    print_parity('with the model', parity, unit)
    if not parity.holds:
        print('the file does NOT compute what the model does')
        sys.exit(1)
