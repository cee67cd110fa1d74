"""Evaluate a checkpoint or an exported file of a detector or a segmentor."""

import argparse

from ..cli import add_config, add_run_arguments, make_parser
from ..errors import UserError


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
    from ..config.augmentation import enable_tta
    from ..config.load import (
        draw_predictions,
        dump_predictions,
        enable_amp_in_test,
        enable_compile,
        load_config,
    )
    from ..config.preflight import check_run
    from ..runner import build_runner
    from ..runner.launch import join_run
    from ..runner.ranks import failing_together
    from ..runtimes.exported import evaluate_exported
    from ..runtimes.runtime import is_exported

    prepare = [enable_amp_in_test] if args.amp else []
    prepare += [enable_compile] if args.compile else []
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, prepare)
    exported = is_exported(args.checkpoint)
    if exported and (args.fuse or args.tta or args.amp or args.compile):
        raise UserError('--fuse, --tta, --amp and --compile: an exported file is run as it is')
    cfg.load_from = None if exported else args.checkpoint
    if args.out:
        dump_predictions(cfg, args.out)
    if args.show_dir:
        draw_predictions(cfg, args.show_dir)
    if args.fuse:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='FuseHook')]
    join_run(cfg)
    with failing_together():
        check_run(cfg, ['test'], args.unsafe_load)
    if args.tta:
        enable_tta(cfg)
    if exported:
        evaluate_exported(cfg, args.checkpoint, args.unsafe_load)
    build_runner(cfg, args.unsafe_load).test()
