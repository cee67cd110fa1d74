"""What a run changes in its whole process, all of it, and for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backbones.checkpoints import safe_reading

from .preemption import watching_signals


@contextmanager
def run_process(unsafe_load: bool = False) -> Iterator[None]:
    """Install what a run needs of its process, and put it back at the end.

    That is: handlers of SIGTERM and SIGUSR1, in the main thread; and the reader of mmengine's
    `CheckpointLoader`, so that no code of the toolboxes unpickles a file. `DenseRunner` enters it
    to train, validate and test; the tools enter it first of all.

    Args:
        unsafe_load: Run the code that checkpoints hold.
    """
    with watching_signals(), safe_reading(unsafe_load):
        yield
