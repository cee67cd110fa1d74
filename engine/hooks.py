"""Hooks that mmengine lacks."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from backbones import MetaFormer
from backbones.checkpoints import CheckpointError

from .loading import fit, own_names, reorder_optimizer


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


@HOOKS.register_module()
class StrictLoadHook(Hook):
    """Makes the Runner load a checkpoint entirely or not at all.

    The backbone may be in any layout that `backbones.checkpoints` knows. Fine-tuning
    (``load_from`` in training) may give the heads other shapes, for other classes: those tensors
    are named and start afresh.
    """

    def after_load_checkpoint(self, runner, checkpoint: dict[str, Any]) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(getattr(model, 'backbone', None), MetaFormer):
            return
        if runner._resume and not {'optimizer', 'message_hub'} <= set(checkpoint):
            raise CheckpointError(
                'the checkpoint to resume from holds weights alone; to start from them, use '
                '--cfg-options load_from=PATH instead of --resume'
            )
        weights = checkpoint.get('state_dict', checkpoint)
        weights = {key.removeprefix('module.'): value for key, value in weights.items()}
        fine_tuning = isinstance(runner.optim_wrapper, OptimWrapper) and not runner._resume
        names = own_names(weights)
        if runner._resume and any(theirs != ours for theirs, ours in names.items()):
            saved = names.values()
            checkpoint['optimizer'] = reorder_optimizer(checkpoint['optimizer'], saved, model)
        weights = fit(weights, model, new_heads=fine_tuning)
        if 'state_dict' not in checkpoint:
            checkpoint.clear()
        checkpoint['state_dict'] = weights
