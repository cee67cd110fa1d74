"""Check the environment and print what to type for each problem; exit with 1 if there is one."""

import sys

from ..cli import make_parser
from ..doctor import diagnose, format_findings


def main() -> None:
    make_parser(__doc__).parse_args()
    rows = diagnose()
    print(format_findings(rows))
    if any(row.status == 'PROBLEM' for row in rows):
        sys.exit(1)
