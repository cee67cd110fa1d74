"""Calculate how long nodes take to average the gradients of a step, in milliseconds.

By a ring over the nodes, with one link each; latency is left out, and so is that most of it happens
during the backward pass. Measure the step without communication, on one node.
"""

import argparse

from ..cli import make_parser
from ..console import on_stderr
from ..terminal import say


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('presets', nargs='*', metavar='PRESET', help='e.g. poolformer_s12; all by default')
    add('--nodes', type=int, default=2, help='how many (2)')
    add('--step', type=float, metavar='MS', help="a step's milliseconds: adds the share of it")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from backbones.presets import PRESETS

    from ..errors import UserError
    from ..measure.communication import format_communication

    if unknown := sorted(set(args.presets) - set(PRESETS)):
        raise UserError(f'there is no preset {", ".join(unknown)}; there are {", ".join(PRESETS)}')
    if args.nodes < 1 or (args.step is not None and args.step <= 0):
        raise UserError('--nodes must be at least 1 and --step more than 0')
    with on_stderr():
        table = format_communication(
            args.presets or PRESETS, args.nodes, args.step and args.step / 1000
        )
    say(table)
