#!/usr/bin/env python
"""Run the main job on drawn shapes: data, training, evaluation, pictures; minutes on a CPU."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/demo/retinanet_poolformer_s12.py'
WORK_DIR = 'work_dirs/demo/retinanet_poolformer_s12'


def run_step(title: str, *command: str) -> None:
    print(f'\n=== {title}\n$ {" ".join(command)}', flush=True)
    done = subprocess.run([sys.executable, *command], cwd=ROOT)
    if done.returncode:
        sys.exit(f'error: {command[0]} failed with exit code {done.returncode}, see above')


def newest(work_dir: Path, pattern: str) -> Path:
    return max(work_dir.glob(pattern), key=lambda path: path.stat().st_mtime)


def print_table(metrics: dict[str, float]) -> None:
    names = {
        'bbox_mAP': 'AP @ IoU 0.50:0.95', 'bbox_mAP_50': 'AP50', 'bbox_mAP_75': 'AP75',
        'bbox_mAP_s': 'AP, small objects', 'bbox_mAP_m': 'AP, medium', 'bbox_mAP_l': 'AP, large',
    }  # fmt: skip
    for key, name in names.items():
        value = metrics.get(f'coco/{key}', -1)
        print(f'  {name:<20}{f"{value:.3f}" if value >= 0 else "none there":>12}')


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    start = time.monotonic()
    work_dir = ROOT / WORK_DIR
    run_step('Drawing the data', 'tools/make_shapes.py', 'data/shapes')
    run_step('Training', 'tools/train.py', CONFIG, '--work-dir', WORK_DIR)
    log = newest(work_dir, '*/*.log')
    checkpoint = (work_dir / 'last_checkpoint').read_text().strip()
    pictures = work_dir / 'pictures'
    run_step(
        'Evaluating', 'tools/test.py', CONFIG, checkpoint,
        '--work-dir', WORK_DIR, '--show-dir', str(pictures),
    )  # fmt: skip
    metrics = json.loads(newest(work_dir, '*/*.json').read_text())
    print(f'\n=== Done in {(time.monotonic() - start) / 60:.1f} minutes\n\nBox AP, validation set:')
    print_table(metrics)
    print(f'\n  report      {work_dir / "report.html"}')
    print(f'  pictures    {pictures} (left: ground truth, right: prediction)')
    print(f'  log         {log}\n  checkpoint  {checkpoint}')


if __name__ == '__main__':
    main()
