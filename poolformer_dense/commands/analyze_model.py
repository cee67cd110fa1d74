"""Print a backbone's parameters, multiply-accumulates and memory kept for backward, by stage.

The counts are of the backbone with its output norms; published ones are of ImageNet classifiers.
"""

import argparse
import json

from ..cli import make_parser
from ..console import on_stderr
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('target', metavar='CONFIG|PRESET', help='a config, or e.g. poolformer_s12')
    add('--size', nargs=2, type=int, default=(224, 224), metavar=('H', 'W'), help='(224 224)')
    add('--json', action='store_true', help='print JSON, sizes in bytes')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from ..measure.analysis import analyze, format_analysis

    with on_stderr():
        analysis = analyze(args.target, args.size)
    say(json.dumps(analysis.as_dict(), indent=2) if args.json else format_analysis(analysis))
