"""Hooks that mmengine lacks."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS

from backbones import MetaFormer
from backbones.checkpoints import CheckpointError, fit, reorder_optimizer

from ..errors import UserError


def batch_factors(cfg: Config) -> tuple[int, int, int]:
    """Return processes, images of each, and batches per optimizer step: their product is the batch.

    Args:
        cfg: The config of a training.
    """
    return (
        get_world_size(),
        cfg.train_dataloader.batch_size,
        cfg.optim_wrapper.get('accumulative_counts', 1),
    )


@HOOKS.register_module()
class BatchReportHook(Hook):
    """Says at the start of a training what the batch and the learning rate are.

    The rate is the one that the schedule starts from: its warm-up and decay are factors of it.
    """

    def before_train(self, runner) -> None:
        processes, images, accumulated = batch_factors(runner.cfg)
        batch = processes * images * accumulated
        unit, plural = ('GPU', 's') if torch.cuda.is_available() else ('CPU process', 'es')
        parts = [f'{processes} {unit}{plural * (processes > 1)}']
        parts += [f'{images} image{"s" * (images > 1)}']
        parts += [f'{accumulated} accumulated'] if accumulated > 1 else []
        rates = Counter()
        for group in runner.optim_wrapper.optimizer.param_groups:
            rates[group.get('initial_lr', group['lr'])] += len(group['params'])
        listed = ', '.join(
            f'{rate:.3g}' + (f' ({tensors} tensors)' if len(rates) > 1 else '')
            for rate, tensors in sorted(rates.items(), reverse=True)
        )
        scaling = runner.auto_scale_lr or {}
        base = scaling.get('base_batch_size')
        origin = ''
        if runner._resume and runner._has_loaded:
            origin = ", the checkpoint's own"
        elif scaling.get('enable'):
            origin = ', as scaled from the base batch'
        runner.logger.info(
            f'Batch: {" x ".join(parts)} = {batch}. '
            f'Base batch of the config: {base or "not given"}. LR: {listed}{origin}'
        )
        if base and batch != base and not origin:
            scaled = ', '.join(f'{rate * batch / base:.3g}' for rate in sorted(rates, reverse=True))
            runner.logger.warning(
                f'The LR is for batch {base}, the batch is {batch}: --auto-scale-lr would make it '
                f'{scaled}'
            )


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
        fine_tuning = isinstance(runner.optim_wrapper, OptimWrapper) and not runner._resume
        found = fit(checkpoint, model, new_heads=fine_tuning)
        if runner._resume and any(theirs != ours for theirs, ours in found.names.items()):
            checkpoint['optimizer'] = reorder_optimizer(
                checkpoint['optimizer'], found.names.values(), model
            )
        if 'state_dict' not in checkpoint:
            checkpoint.clear()
        checkpoint['state_dict'] = found.tensors


@HOOKS.register_module()
class FuseHook(Hook):
    """Folds the backbone for inference when a test starts, its weights loaded."""

    def before_test(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model.backbone, MetaFormer):
            raise UserError(
                f'--fuse: the backbone {type(model.backbone).__name__} can not be folded'
            )
        model.backbone.fuse()
        runner.logger.info('The backbone is folded: norms and layer scales are in the weights.')
