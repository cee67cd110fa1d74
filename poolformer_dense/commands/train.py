"""Train a detector or a segmentor from a config."""

import argparse
import signal

from ..cli import add_config, add_run_arguments, make_parser


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
        from ..api import train

        train(
            args.config,
            args.cfg_options,
            work_dir=args.work_dir,
            resume={None: False, 'auto': True}.get(args.resume, args.resume),
            amp=args.amp,
            compiled=args.compile,
            auto_scale_lr=args.auto_scale_lr,
            launcher=args.launcher,
            unsafe_load=args.unsafe_load,
        )
