"""Train a detector or a segmentor from a config."""

import argparse
import os
import signal
from contextlib import ExitStack

from ..cli import add_config, add_run_arguments, make_parser
from ..errors import first_process


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add(
        '--amp',
        action='store_true',
        help='mixed precision: on a GPU float16 with loss scaling, or --cfg-options '
        'optim_wrapper.dtype=bfloat16; on a CPU bfloat16',
    )
    add(
        '--auto-scale-lr',
        action='store_true',
        help="scale the learning rate from the config's base batch to the batch in use",
    )
    add(
        '--resume',
        nargs='?',
        const='auto',
        metavar='auto|PATH',
        help='resume from a checkpoint, by default the newest intact one in the work directory',
    )
    add_run_arguments(parser)
    return parser.parse_args()


def main() -> None:
    # The imports take seconds; a request to stop waits until there is a handler.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1})
    args = parse_args()
    from ..runner import run_process

    with run_process(args.unsafe_load, training=True):
        train(args)


def train(args: argparse.Namespace) -> None:
    from backbones.checkpoints import MIRROR_VARIABLE

    from ..config.load import (
        enable_amp,
        enable_compile,
        enable_lr_scaling,
        load_config,
        use_mirror,
    )
    from ..config.preflight import check_run
    from ..runner import build_runner
    from ..runner.folder_lock import alone_in
    from ..runner.launch import join_run
    from ..runner.ranks import failing_together

    prepare = [enable_amp] if args.amp else []
    prepare += [enable_lr_scaling] if args.auto_scale_lr else []
    prepare += [enable_compile] if args.compile else []
    cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher, prepare)
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    use_mirror(cfg, os.environ.get(MIRROR_VARIABLE))
    join_run(cfg)
    with ExitStack() as stack:
        with failing_together():
            if first_process():
                stack.enter_context(alone_in(cfg.work_dir))
            check_run(cfg, ['train', 'val'], args.unsafe_load)
        build_runner(cfg, args.unsafe_load).train()
