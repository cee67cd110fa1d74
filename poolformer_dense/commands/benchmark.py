"""Time a whole detector or segmentor, or a backbone, beside others, in turns within one run.

CONFIG [CHECKPOINT]: the stages of a step, from the data to the optimizer or to the detections, ours
beside stock: the same config with its backbone in plain torch and the toolboxes' memory layout.
With --formats image to result on the CPU in each format, its memory, its file, and the AP or mIoU
on the config's test data where these are there.

PRESET (poolformer_s12): the backbone beside other implementations of it. All do the same work with
the same weights, in which they agree (this is checked first); training adds the backward of fixed
gradients of all four maps. Every peer runs in both memory formats, and the faster one counts; ours
is the default model (on a GPU with backend='triton'). The matrix products alone are the floor; on a
GPU a copy of the bytes that enter the blocks is another. The peers have an environment of their
own: make peers, then .venv-peers/bin/python for this tool.

Below float32 the weights stay in float32, under autocast.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..cli import add_overrides, make_parser
from ..console import on_stderr
from ..errors import UserError
from ..shipped import find_config

# As the library has them, which takes seconds to import.
CONTESTANTS = ('reference', 'mmpretrain', 'timm', 'hf', 'compile')
TASKS = ('infer', 'train')
DTYPES = ('float32', 'float16', 'bfloat16')
# What a backbone alone is asked for.
OF_A_PRESET = dict(size=(512, 512), batch=2, device=None, against=['mmpretrain', 'timm', 'hf'])


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        'config',
        nargs='?',
        type=config_or_preset,
        default='poolformer_s12',
        help='config file, the name of a shipped one, or a preset (poolformer_s12)',
    )
    add('checkpoint', nargs='?', help='weights of the config; they decide how much is detected')
    add('--task', choices=TASKS, default='infer')
    add('--dtype', choices=DTYPES, default='float32')
    add('--rounds', type=at_least(1), default=10, help='of measurement, after one to warm up (10)')
    add('--threads', type=at_least(1), help="of a CPU (torch's default)")
    add('--load', type=at_least(0), default=0, help='busy processes beside it (0)')
    add('--json', type=new_file, metavar='FILE', help='write everything measured')
    whole = parser.add_argument_group('of a CONFIG')
    whole.add_argument(
        '--formats',
        type=lambda text: text.split(','),
        metavar='NAME,...',
        help='of reference (plain torch), torch, compile, onnx, openvino, openvino-int8',
    )
    whole.add_argument(
        '--calibration', help='images of openvino-int8, as --int8 of the export (train)'
    )
    add_overrides(parser)
    preset = parser.add_argument_group('of a PRESET')
    preset.add_argument(
        '--size',
        nargs=2,
        type=at_least(32),  # stage 4 needs that
        metavar=('H', 'W'),
        help='of the images in pixels (512 512)',
    )
    preset.add_argument('--batch', type=at_least(1), help='number of images (2)')
    preset.add_argument('--device', help='as torch names it (a GPU if there is one, else cpu)')
    preset.add_argument(
        '--against',
        type=contestants,
        metavar='NAME,...',
        help=f'of {", ".join(CONTESTANTS)} (mmpretrain,timm,hf); reference is our model in plain '
        'torch; compile adds torch.compile of it and of the other names',
    )
    args = parser.parse_args()
    is_config = Path(args.config).is_file()
    for name, default in OF_A_PRESET.items():
        if is_config and getattr(args, name) is not None:
            parser.error(f'--{name} is for a preset such as poolformer_s12, not for a config')
        if getattr(args, name) is None:
            setattr(args, name, default)
    if not is_config and (args.checkpoint or args.formats or args.cfg_options):
        parser.error(f'a checkpoint, --formats and --cfg-options need a config: {args.config}')
    if args.calibration and 'openvino-int8' not in (args.formats or ()):
        parser.error('--calibration is for --formats openvino-int8')
    if args.formats and (not args.checkpoint or args.task == 'train' or args.dtype != 'float32'):
        parser.error('--formats needs CONFIG CHECKPOINT, and infers in float32')
    return args


def config_or_preset(text: str) -> str:
    try:
        return find_config(text)
    except UserError:
        if not text.isidentifier():  # a path, or a name with a folder
            raise
        return text


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

    from ..measure import benchmark

    if args.threads:
        torch.set_num_threads(args.threads)
    device = 'cpu' if args.formats else benchmark.select_device(args.device)
    environment = benchmark.describe_environment(device)
    load = f', beside {args.load} busy processes' if args.load else ''
    place = '{device}, {threads} threads, torch {torch}'.format_map(environment) + load
    console = Console()
    console.print(place)
    if not Path(args.config).is_file():
        measured = time_preset(args, device, console)
    else:
        measured = (time_formats if args.formats else time_stages)(args, console)
    if args.json:
        result = {'environment': environment, 'load': args.load, **measured}
        args.json.write_text(json.dumps(result, indent=2) + '\n')


def time_preset(args: argparse.Namespace, device: str, console: Any) -> dict[str, Any]:
    from backbones.presets import PRESETS

    from ..measure import benchmark

    if args.config not in PRESETS:
        try:
            find_config(args.config)
        except UserError as error:
            raise UserError(f'{error}; nor is it a preset: {", ".join(PRESETS)}') from error
    workload = benchmark.Workload(
        args.config, args.task, args.dtype, tuple(args.size), args.batch, device
    )
    # Peers print while they are imported.
    with contextlib.redirect_stdout(sys.stderr), benchmark.busy_processes(args.load):
        rows, missing = benchmark.compete(workload, args.against, args.rounds)
    console.print(benchmark.table(workload, rows), benchmark.ratio_table(rows))
    for line in missing:
        console.print(f'missing: {line}', soft_wrap=True)
    return benchmark.as_dict(workload, rows) | {'missing': missing}


def time_stages(args: argparse.Namespace, console: Any) -> dict[str, Any]:
    import torch

    from ..config.load import enable_amp, load_config
    from ..config.preflight import check_run
    from ..measure.benchmark import busy_processes, whole
    from ..runner import run_process

    training = args.task == 'train'
    prepare = [enable_amp] if args.dtype != 'float32' and training else []
    cfg = load_config(args.config, args.cfg_options, prepare=prepare)
    if prepare and torch.cuda.is_available():
        cfg.optim_wrapper.dtype = args.dtype
    if args.checkpoint:
        cfg.load_from = args.checkpoint
    cfg.log_level = 'WARNING'
    check_run(cfg, ['train' if training else 'test'])
    with run_process():
        models = whole.build_contestants(cfg, args.task, args.dtype)
        with busy_processes(args.load):
            whole.take_turns(models, args.rounds)
    title = f'{Path(args.config).stem} {args.task}, {args.dtype}, {args.rounds} rounds'
    console.print(whole.stage_table(models, title))
    return {model.name: model.seconds for model in models}


def time_formats(args: argparse.Namespace, console: Any) -> dict[str, Any]:
    from ..api import evaluate
    from ..config.load import load_config
    from ..measure.benchmark import busy_processes, format_times

    cfg = load_config(args.config, args.cfg_options)
    folder = Path(cfg.work_dir, 'formats')
    with busy_processes(args.load):
        rows = format_times.compare_formats(
            cfg, args.checkpoint, args.formats, folder, args.rounds, args.calibration or 'train'
        )
    console.print(format_times.format_table(rows))
    metrics: dict[str, dict[str, float]] = {}
    for row in rows:
        try:
            with on_stderr():
                options = dict(work_dir=folder, **format_times.format_options(row.name))
                metrics[row.name] = evaluate(args.config, row.file, args.cfg_options, **options)
        except UserError as error:
            console.print(f'no AP or mIoU: {error}', soft_wrap=True)
            break
        found = {k: v for k, v in metrics[row.name].items() if k.endswith(('mAP', 'mIoU'))}
        console.print(row.name, ', '.join(f'{k} {v:.3f}' for k, v in found.items()), soft_wrap=True)
    return {'formats': [vars(row) | {'metrics': metrics.get(row.name)} for row in rows]}
