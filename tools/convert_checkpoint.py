#!/usr/bin/env python
"""Convert a backbone's weights from any known layout to another, by names and shapes."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.convert_checkpoint import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
