#!/usr/bin/env python
"""Compile the loops of backbones/ops/backends/native.cpp for CPUs, as `make setup` does.

Without them backend='auto' takes torch's own operators, which are slower.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import make_parser, run_tool
from poolformer_dense.errors import UserError


def main() -> None:
    make_parser(__doc__).parse_args()
    from backbones.ops.backends import library

    try:
        paths = library.build()
    except RuntimeError as error:
        raise UserError(
            f"{library.SOURCE}: {error}; without it backend='auto' takes slower operators of torch"
        ) from error
    for path in paths:
        print(path)


if __name__ == '__main__':
    sys.exit(run_tool(main))
