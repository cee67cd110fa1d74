#!/usr/bin/env python
"""Make docs/results.md from the configs and configs/metafile.yml.

With --measure, first count the parameters and multiply-accumulates of every model that the metafile
lists and write them into it: needed after a model was added or changed.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from poolformer_dense.cli import make_parser, run_tool


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        '--measure', action='store_true', help='count again what each model costs (minutes)'
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from rich.progress import track

    from poolformer_dense.measure.results_page import (
        PAGE,
        SMALL,
        format_results,
        load_metafile,
        measure_costs,
        write_metafile,
    )

    metafile = load_metafile(ROOT)
    if args.measure:
        sizes = {c['Name']: c['Metadata'].get(SMALL) for c in metafile['Collections']}
        for model in track(metafile['Models'], description='measuring'):
            size = sizes[model['In Collection']]
            model['Metadata'] |= measure_costs(ROOT / model['Config'], size)
        write_metafile(ROOT, metafile)
    (ROOT / PAGE).write_text(format_results(ROOT, metafile))
    print(f'{PAGE}: {len(metafile["Models"])} models')


if __name__ == '__main__':
    sys.exit(run_tool(main))
