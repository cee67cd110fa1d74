"""Compile the loops of backbones/ops/backends/native.cpp for CPUs, as `make setup` does.

Without them backend='auto' takes torch's own operators, which are slower.
"""

from ..cli import make_parser
from ..errors import UserError


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
