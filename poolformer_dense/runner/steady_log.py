"""Logging that a full disk does not turn into the end of a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import LoggerHook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class SteadyLoggerHook(LoggerHook):
    """mmengine's LoggerHook; figures that can't be written are lost, and the run goes on."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        with _surviving(runner):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        with _surviving(runner):
            super().after_val_epoch(runner, metrics)


@contextlib.contextmanager
def _surviving(runner: Runner) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        runner.logger.error(f'The figures could not be written ({error}); training goes on')
