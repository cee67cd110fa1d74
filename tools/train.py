#!/usr/bin/env python
"""Train a detector or a segmentor from a config."""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.runner import find_latest_checkpoint

from backbones.checkpoints import MIRROR_VARIABLE
from engine.cli import add_run_arguments, run_tool
from engine.preflight import check_run
from engine.runtime import build_runner, enable_amp, enable_lr_scaling, load_config, use_mirror


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision: float16 with loss scaling, or '
        '--cfg-options optim_wrapper.dtype=bfloat16',
    )
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch to the batch in use",
    )
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='go on from a checkpoint, by default the latest in the work directory',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    prepare = [enable_amp] if args.amp else []
    prepare += [enable_lr_scaling] if args.auto_scale_lr else []
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, prepare)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    use_mirror(cfg, os.environ.get(MIRROR_VARIABLE))
    check_run(cfg, ['train', 'val'])
    if args.resume == 'auto' and find_latest_checkpoint(cfg.work_dir) is None:
        print(f'warning: no checkpoint in {cfg.work_dir} to resume from: training starts anew')
    build_runner(cfg).train()


if __name__ == '__main__':
    sys.exit(run_tool(main))
