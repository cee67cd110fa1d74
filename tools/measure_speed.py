#!/usr/bin/env python
"""Print the README's table: how many times as fast as stock whole models are, in separate runs.

RetinaNet and Semantic FPN with PoolFormer-S12 of the published configs, on drawn images of 640x480
(Semantic FPN trains on crops of 512x512), two a batch; idle, then beside two busy processes. Each
run is a process of its own, and its ratio that of two medians of steps in turns; the table has the
median of the runs and their range.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool

MODELS = {'RetinaNet-S12': 'retinanet_poolformer_s12', 'Semantic FPN-S12': 'fpn_poolformer_s12'}
CELLS = [(t, d) for t in ('infer', 'train') for d in ('float32', 'bfloat16')]
LOADS = (0, 2)


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('--runs', type=int, default=5)
    add('--rounds', type=int, default=2, help='steps of each in a run that count')
    add('--size', type=int, nargs=2, default=(640, 480), metavar=('W', 'H'), help='of the images')
    add('--once', type=Path, metavar='FILE', help='be one run, and write its ratios')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.once:
        args.once.write_text(json.dumps(measure(args.rounds, tuple(args.size))))
        return
    runs: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.runs):
            path = Path(folder, f'{number}.json')
            words = [__file__, '--rounds', args.rounds, '--size', *args.size, '--once', path]
            subprocess.run([sys.executable, *map(str, words)], check=True)
            runs.append(json.loads(path.read_text()))
            print(f'run {number + 1} of {args.runs} is done', file=sys.stderr)
    print(format_table(runs))


def format_table(runs: Sequence[Mapping[str, float]]) -> str:
    """Return the table of the medians of runs and their ranges, in Markdown."""
    lines = [
        '| times as fast as stock | ' + ' | '.join(MODELS) + ' |',
        '|---|' + '--:|' * len(MODELS),
    ]
    for task, dtype in CELLS:
        for load in LOADS:
            cells = []
            for name in MODELS:
                ratios = [run[f'{name} {task} {dtype} {load}'] for run in runs]
                low, high = min(ratios), max(ratios)
                cells.append(f'{statistics.median(ratios):.2f} ({low:.2f}-{high:.2f})')
            place = f', beside {load} busy processes' if load else ''
            lines.append(f'| {task}, {dtype}{place} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def measure(rounds: int, size: tuple[int, ...]) -> dict[str, float]:
    from mmdet.datasets import CocoDataset

    from poolformer_dense.config.load import enable_amp, load_config
    from poolformer_dense.measure.benchmark import busy_processes, whole
    from poolformer_dense.measure.shapes import write_ade20k, write_coco
    from poolformer_dense.runner import run_process
    from poolformer_dense.shipped import config_path

    ratios: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder, run_process():
        write_coco(Path(folder, 'coco'), 8, 8, categories=CocoDataset.METAINFO['classes'])
        write_ade20k(Path(folder, 'ade'), 8, 8)
        for (name, config), data in zip(MODELS.items(), ('coco', 'ade'), strict=True):
            for task, dtype in CELLS:
                amp = [enable_amp] if (task, dtype) == ('train', 'bfloat16') else []
                cfg = load_config(
                    config_path(config), {'data_root': str(Path(folder, data))}, prepare=amp
                )
                cfg.log_level = 'ERROR'
                cfg.model.backbone.init_cfg = None
                for loader in (cfg.train_dataloader, cfg.test_dataloader):
                    loader.update(batch_size=2, num_workers=1)
                    for step in loader.dataset.pipeline:
                        if 'Resize' in step.type and 'scale' in step:
                            step.update(scale=size, keep_ratio=False)
                models = whole.build_contestants(cfg, task, dtype)
                for load in LOADS:
                    with busy_processes(load):
                        whole.take_turns(models, rounds)
                    ours, stock = (statistics.median(m.times()) for m in models)
                    cell = f'{name} {task} {dtype} {load}'
                    ratios[cell] = round(stock / ours, 3)
                    print(f'{cell}: {ours:.2f} s, {ratios[cell]}x', file=sys.stderr)
    return ratios


if __name__ == '__main__':
    sys.exit(run_tool(main))
