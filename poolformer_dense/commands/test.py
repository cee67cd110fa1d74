"""Evaluate a checkpoint or an exported file of a detector or a segmentor."""

import argparse

from ..cli import add_config, add_run_arguments, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file or URL, or what tools/export.py wrote')
    add('--out', help='where predictions go: a .pkl file (detection), a folder (segmentation)')
    add('--show-dir', help='folder of pictures, ground truth beside prediction')
    add('--fuse', action='store_true', help='fold norms and layer scales of the backbone first')
    add('--tta', action='store_true', help="test-time augmentation, as the config's tta_pipeline")
    add('--amp', action='store_true', help='autocast to float16 on a GPU, to bfloat16 on a CPU')
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..api import evaluate

    evaluate(
        args.config,
        args.checkpoint,
        args.cfg_options,
        work_dir=args.work_dir,
        out=args.out,
        show_dir=args.show_dir,
        fuse=args.fuse,
        amp=args.amp,
        compiled=args.compile,
        tta=args.tta,
        launcher=args.launcher,
        unsafe_load=args.unsafe_load,
    )
