#!/usr/bin/env python
"""Print a backbone's parameters, multiply-accumulates and memory kept for backward, by stage."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.analyze_model import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
