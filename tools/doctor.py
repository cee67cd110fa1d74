#!/usr/bin/env python
"""The command ``poolformer-dense doctor``, in a clone."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

try:
    from poolformer_dense.commands.doctor import main
except ModuleNotFoundError as missing:
    sys.exit(f'doctor: {sys.executable} is bare ({missing}): make setup')

if __name__ == '__main__':
    main()
