#!/usr/bin/env python
"""Write the report of a training, or compare several: one HTML file that needs nothing else."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.report import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
