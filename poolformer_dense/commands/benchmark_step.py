"""Time where a step of a whole detector or segmentor goes, beside plain PyTorch, in turn.

The step is that of a run: data, preprocessing, backbone, neck, heads, losses, backward, optimizer;
or post-processing. Plain PyTorch is the same config with model.backbone.backend='reference', in the
memory format of the toolboxes. The weights are those of the start; a checkpoint decides how many
detections there are to process.
"""

import argparse
from pathlib import Path

from ..cli import add_config, make_parser


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', nargs='?', type=Path)
    add('--task', choices=('train', 'infer'), default='infer')
    add('--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32')
    add('--rounds', type=int, default=10, help='steps of each that count (10)')
    add('--threads', type=int, help="of a CPU (torch's default)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import torch
    from rich.console import Console

    from ..config.load import enable_amp, load_config
    from ..config.preflight import check_run
    from ..measure import benchmark
    from ..runner import run_process

    if args.threads:
        torch.set_num_threads(args.threads)
    prepare = [enable_amp] if args.dtype != 'float32' and args.task == 'train' else []
    cfg = load_config(args.config, args.cfg_options, prepare=prepare)
    if prepare and torch.cuda.is_available():
        cfg.optim_wrapper.dtype = args.dtype
    if args.checkpoint:
        cfg.load_from = str(args.checkpoint)
    cfg.log_level = 'WARNING'
    check_run(cfg, ['train' if args.task == 'train' else 'test'])
    with run_process():
        models = benchmark.compare_steps(cfg, args.task, args.dtype, args.rounds)
    environment = benchmark.describe_environment(benchmark.select_device())
    console = Console()
    console.print('{device}, {threads} threads, torch {torch}'.format_map(environment))
    title = f'{Path(args.config).stem} {args.task}, {args.dtype}, {args.rounds} rounds'
    console.print(benchmark.stage_table(models, title))
