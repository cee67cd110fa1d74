#!/usr/bin/env python
"""Make COCO annotation files from Pascal VOC's XML or YOLO's text files; images stay in place."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from poolformer_dense.cli import run_tool
from poolformer_dense.commands.convert_data import main

if __name__ == '__main__':
    sys.exit(run_tool(main))
