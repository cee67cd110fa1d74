"""A training that waits at a given iteration until a test has done what it wants to do there."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from poolformer_dense.runner import preemption


@HOOKS.register_module()
class Gate(Hook):
    """Holds every rank before an iteration until the gate opens or a signal comes.

    Args:
        folder: Where ranks say that they have arrived, and the file ``open`` lets them through.
        iteration: Before which they wait, counted from 0.
    """

    def __init__(self, folder: str, iteration: int) -> None:
        self.folder, self.iteration = Path(folder), iteration

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter != self.iteration:
            return
        (self.folder / f'arrived{runner.rank}').touch()
        while not (self.folder / 'open').exists() and preemption.requested() is None:
            time.sleep(0.02)
