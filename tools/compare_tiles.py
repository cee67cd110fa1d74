#!/usr/bin/env python
"""The command ``poolformer-dense compare-tiles``, in a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.compare_tiles import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
