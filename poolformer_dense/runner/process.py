"""What a run changes in its whole process, all of it, and for as long as it lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from backbones.checkpoints import safe_reading

from .preemption import watching_signals


@contextmanager
def run_process(unsafe_load: bool = False, training: bool = False) -> Iterator[None]:
    """Install what a run needs of its process, and put it back at the end.

    That is: the reader of mmengine's `CheckpointLoader`, so that no code of the toolboxes unpickles
    a file; and, to train, handlers of SIGTERM, SIGUSR1 and SIGINT in the main thread. `DenseRunner`
    enters it to train, validate and test; tools/train.py enters it first of all.

    Args:
        unsafe_load: Run the code that checkpoints hold.
        training: Whether the process trains: other work ends at a signal, as any program does.
    """
    with watching_signals() if training else nullcontext(), safe_reading(unsafe_load):
        yield
