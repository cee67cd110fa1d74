"""Hooks that mmengine lacks."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class EmptyResultHook(Hook):
    """Says why an evaluation has no figures when the model detected nothing at all."""

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self._explain(runner, metrics)

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self._explain(runner, metrics)

    @staticmethod
    def _explain(runner, metrics: dict[str, float] | None) -> None:
        if not metrics:
            runner.logger.warning(
                'No AP: not one detection scored above test_cfg.score_thr. This is usual after a '
                'very short training or from random weights; train longer or lower the threshold.'
            )
