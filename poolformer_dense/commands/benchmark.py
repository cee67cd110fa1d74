"""Time a preset's backbone beside other implementations of it, in turn within one run.

All do the same work with the same weights: four feature maps, each after an output norm, in which
they agree (this is checked first); training adds the backward of fixed gradients of all four. timm
and transformers have no output norms and get plain copies of ours. Every peer runs in both memory
formats, and the faster one counts; 'ours' is the default model (on a GPU with backend='triton') on
contiguous images, as a config builds it. Below float32 the weights stay in float32, under autocast.
The matrix products alone, in the same dtype, are the floor: all convolutions and linear layers,
without attention's own products. On a GPU a copy of the bytes that enter the blocks is another.

The peers have an environment of their own: make peers, then .venv-peers/bin/python for this tool.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from ..cli import make_parser

# As the library has them, which takes seconds to import.
CONTESTANTS = ('reference', 'mmpretrain', 'timm', 'hf', 'compile')
TASKS = ('infer', 'train')
DTYPES = ('float32', 'float16', 'bfloat16')


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        'preset',
        nargs='?',
        default='poolformer_s12',
        help='e.g. poolformer_s12 (the default); with --formats a config',
    )
    add('checkpoint', nargs='?', help='with --formats')
    add(
        '--formats',
        type=lambda text: text.split(','),
        metavar='NAME,...',
        help='time a whole detector or segmentor on the CPU, from the image to the result, as '
        'reference (plain torch), torch, compile, onnx, openvino, openvino-int8',
    )
    add('--calibration', default='train', help='images of openvino-int8, as --int8 of the export')
    add('--task', choices=TASKS, default='infer')
    add('--dtype', choices=DTYPES, default='float32')
    sizes = parser.add_mutually_exclusive_group()
    pixels = at_least(32)  # stage 4 needs that
    help = 'of the images in pixels (512 512)'
    sizes.add_argument(
        '--size', nargs=2, type=pixels, default=(512, 512), metavar=('H', 'W'), help=help
    )
    sizes.add_argument('--sizes', nargs='+', type=pixels, metavar='S', help='several squares')
    add('--batch', type=at_least(1), default=2, help='number of images (2)')
    add('--device', help='as torch names it (a GPU if there is one, else cpu)')
    add(
        '--against',
        type=contestants,
        default='mmpretrain,timm,hf',
        metavar='NAME,...',
        help=f'of {", ".join(CONTESTANTS)} (mmpretrain,timm,hf); reference is our model in plain '
        'torch; compile adds torch.compile of it and of the other names',
    )
    add('--rounds', type=at_least(1), default=10, help='of measurement, after one to warm up (10)')
    add('--threads', type=at_least(1), help="of a CPU (torch's default)")
    add('--json', type=new_file, metavar='FILE', help='write everything measured')
    add('--plot', type=new_file, metavar='FILE', help='draw bars, e.g. to times.png')
    args = parser.parse_args()
    if bool(args.formats) != bool(args.checkpoint):
        parser.error('--formats needs CONFIG CHECKPOINT, and a checkpoint needs --formats')
    if args.plot and find_spec('matplotlib') is None:
        parser.error('--plot needs matplotlib: pip install matplotlib')
    return args


def time_formats(args: argparse.Namespace) -> None:
    import torch
    from rich.console import Console

    from ..config.load import load_config
    from ..measure.format_times import compare_formats, format_table

    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_config(args.preset)
    folder = Path(cfg.work_dir, 'formats')
    rows = compare_formats(
        cfg, args.checkpoint, args.formats, folder, args.rounds, args.calibration
    )
    Console().print(format_table(rows))
    if args.json:
        args.json.write_text(json.dumps([vars(row) for row in rows], indent=2) + '\n')


def at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f'{text!r} is not a number from {least}')
        return int(text)

    return number


def contestants(text: str) -> list[str]:
    for name in text.split(','):
        if name not in CONTESTANTS:
            raise argparse.ArgumentTypeError(f'{name!r} is none of {", ".join(CONTESTANTS)}')
    return text.split(',')


def new_file(text: str) -> Path:
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f'the folder of {text} does not exist')
    return Path(text)


def main() -> None:
    args = parse_args()
    import torch
    from rich.console import Console

    if args.formats:
        time_formats(args)
        return
    from ..measure import benchmark

    device = benchmark.select_device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    environment = benchmark.describe_environment(device)
    place = '{device}, {threads} threads, torch {torch}'.format_map(environment)
    sizes = [(s, s) for s in args.sizes] if args.sizes else [tuple(args.size)]

    console, runs = Console(), []
    console.print(place)
    for size in sizes:
        workload = benchmark.Workload(args.preset, args.task, args.dtype, size, args.batch, device)
        with contextlib.redirect_stdout(sys.stderr):  # peers print while they are imported
            rows, missing = benchmark.compete(workload, args.against, args.rounds)
        runs.append((workload, rows))
        console.print(benchmark.table(workload, rows), benchmark.ratio_table(rows))
    for line in missing:
        console.print(f'missing: {line}', soft_wrap=True)
    if len(runs) > 1:
        console.print(benchmark.growth_table(runs))
    if args.json:
        result = {'environment': environment, 'runs': benchmark.as_dict(runs), 'missing': missing}
        args.json.write_text(json.dumps(result, indent=2) + '\n')
    if args.plot:
        benchmark.plot(runs, args.plot, place)
