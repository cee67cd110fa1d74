"""Write a checkpoint's weights for sharing: a safetensors file, its config, and a model card.

The file has nothing but weights; its header has the names of the classes, the config, the metrics
of the run and a checksum. It loads like a checkpoint.
"""

import argparse
from pathlib import Path

from ..cli import add_config, add_unsafe_load, make_parser
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add_config(parser)
    add('checkpoint', help='checkpoint file')
    add('--out', type=Path, help='a folder (work_dirs/CONFIG/published)')
    add('--license', default='apache-2.0', help='of the weights, as the hub names it (apache-2.0)')
    add_unsafe_load(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..config.load import load_config
    from ..exporting.sharing import publish

    cfg = load_config(args.config, args.cfg_options)
    folder = args.out or Path(cfg.work_dir, 'published')
    header = publish(cfg, args.checkpoint, folder, args.license, args.unsafe_load)
    measured = ', '.join(f'{k} {v}' for k, v in header['metrics'].items()) or 'no metrics'
    say(f'{folder}: model.safetensors (sha256 {header["sha256"][:12]}), config.py, README.md')
    say(f'{len(header["classes"])} classes; {measured}')
