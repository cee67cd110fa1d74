#!/usr/bin/env python
"""Check the environment and print what to type for each problem; exit with 1 if there is one."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

try:
    from poolformer_dense.doctor import diagnose, format_findings
except ModuleNotFoundError as missing:
    sys.exit(f'doctor: {sys.executable} is bare ({missing}): make setup')


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    rows = diagnose(ROOT)
    print(format_findings(rows))
    return int(any(row.status == 'PROBLEM' for row in rows))


if __name__ == '__main__':
    sys.exit(main())
