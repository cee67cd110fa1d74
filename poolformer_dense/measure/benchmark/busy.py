"""Other work on the machine while something is timed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Ends by itself if whoever started it was killed.
_BUSY = 'import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass'


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """Keep so many processes busy within the block, as loader workers or another training do."""
    processes = [subprocess.Popen([sys.executable, '-c', _BUSY]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
