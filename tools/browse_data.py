#!/usr/bin/env python
"""Draw what the network sees: images after augmentation, with boxes, masks or label maps."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.browse_data import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
