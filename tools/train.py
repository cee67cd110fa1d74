#!/usr/bin/env python
"""Train a detector or a segmentor from a config."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.train import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
