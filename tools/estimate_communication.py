#!/usr/bin/env python
"""Calculate how long nodes take to average the gradients of a step, in milliseconds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.estimate_communication import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
