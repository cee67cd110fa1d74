"""Convert a backbone's weights from any known layout to another, by names and shapes.

    python tools/convert_checkpoint.py poolformer_s12.pth.tar s12.safetensors --to timm
    python tools/convert_checkpoint.py caformer_s18 caformer_s18.pth --to ours

The layout of the source is found from its names. Classifiers, necks and detection heads are not
converted; the tool says what it leaves out.
"""

import argparse
import os

from ..cli import add_unsafe_load, make_parser
from ..terminal import say

# As backbones.checkpoints has them, which takes seconds to import.
LAYOUT_NAMES = ('ours', 'official', 'mmpretrain', 'baselines', 'timm', 'hf')


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add(
        'src',
        metavar='SRC',
        help='a file, a URL, or the name of released weights, which is looked for in the folder '
        'or URL that the environment variable POOLFORMER_WEIGHTS names, if it is set',
    )
    add('dst', metavar='DST', help='a new file: .safetensors, or anything else')
    add('--to', required=True, choices=LAYOUT_NAMES, help='layout of DST')
    add('--prefix', help="what stands before the backbone's names in SRC")
    add_unsafe_load(parser)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from backbones.checkpoints import (
        LAYOUTS,
        MIRROR_VARIABLE,
        CheckpointError,
        convert_names,
        listed,
        localise,
        read_checkpoint,
        to_layout,
        weights_of,
    )
    from backbones.checkpoints.conversion import dropped_by

    from ..files import write_checkpoint

    source = localise(args.src, os.environ.get(MIRROR_VARIABLE))
    weights = weights_of(read_checkpoint(source, unsafe=args.unsafe_load), source)
    try:
        file = convert_names(weights, prefix=args.prefix)
        if file.left:
            raise CheckpointError(
                f'the {file.layout} layout does not have {listed("tensors", file.left)}'
            )
        converted = to_layout(file.tensors, args.to)
    except CheckpointError as error:
        raise CheckpointError(f'{source} was not converted: {error}') from error
    write_checkpoint(converted, args.dst, LAYOUTS[args.to].wrapper)
    dropped = file.dropped + [
        theirs for theirs, ours in file.names.items() if ours in dropped_by(file.tensors, args.to)
    ]
    say(f'{source} ({file.layout}) -> {args.dst} ({args.to}): {len(converted)} tensors')
    if dropped:
        say(f'left out: {listed("tensors", dropped, most=12)}')
