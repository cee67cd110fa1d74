"""Hooks that mmengine lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.evaluator import DumpResults
from mmengine.hooks import EarlyStoppingHook, Hook, LoggerHook
from mmengine.registry import HOOKS
from torch.utils.data import DataLoader

from backbones import MetaFormer

from ..config.walk import nodes_of_type
from ..errors import UserError
from .state import bare_model


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
        if not {'train_dataloader', 'optim_wrapper'} <= set(runner.cfg):
            return  # a Runner of objects, in code
        processes, images, accumulated = batch_factors(runner.cfg)
        batch = processes * images * accumulated
        unit, plural = ('GPU', 's') if torch.cuda.is_available() else ('CPU process', 'es')
        parts = [f'{processes} {unit}{plural * (processes > 1)}']
        parts += [f'{images} image{"s" * (images > 1)}']
        parts += [f'{accumulated} accumulated'] if accumulated > 1 else []
        rates: Counter[float] = Counter()
        for group in runner.optim_wrapper.optimizer.param_groups:
            rates[group.get('initial_lr', group['lr'])] += len(group['params'])
        listed = ', '.join(
            f'{rate:.3g}' + (f' ({tensors} tensors)' if len(rates) > 1 else '')
            for rate, tensors in sorted(rates.items(), reverse=True)
        )
        scaling = runner.auto_scale_lr or {}
        base = scaling.get('base_batch_size')
        origin = ''
        if runner.resumed:
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
class StartReportHook(Hook):
    """Says what a run starts from, the data and the model, and where its results go."""

    priority = 'ABOVE_NORMAL'

    def before_train(self, runner) -> None:
        loaders = dict(train=runner.train_dataloader)
        if runner.val_loop is not None:
            loaders['validation'] = runner.val_dataloader
        self._say(runner, loaders)

    def before_test(self, runner) -> None:
        self._say(runner, dict(test=runner.test_dataloader))

    @staticmethod
    def _say(runner, loaders: dict[str, DataLoader]) -> None:
        data = ', '.join(f'{name} {_described(loader)}' for name, loader in loaders.items())
        runner.logger.info(f'Data: {data}')
        model = bare_model(runner)
        parts = [type(model).__name__]
        parts += [type(model.backbone).__name__] if hasattr(model, 'backbone') else []
        millions = sum(weight.numel() for weight in model.parameters()) / 1e6
        runner.logger.info(f'Model: {" with ".join(parts)}, {millions:.1f} M parameters')
        # Weights that are loaded are told of where they are.
        named = any(True for _ in nodes_of_type(runner.cfg.get('model') or {}, 'Pretrained'))
        if not named and runner.loaded_from is None:
            runner.logger.info('Weights: from scratch; neither init_cfg nor load_from names any')
        log = runner.logger.log_file or runner.log_dir
        runner.logger.info(f'Results: {runner.work_dir} (log: {log})')


def _described(loader: DataLoader) -> str:
    """Return the number of images, if the data set knows it, and the folders that they are in."""
    found: list[Any] = [loader.dataset]
    number = f'{len(found[0])} images' if hasattr(found[0], '__len__') else 'a stream'
    roots = dict[str, None]()
    while found:
        dataset = found.pop(0)
        inner = getattr(dataset, 'dataset', None)
        found += getattr(dataset, 'datasets', None) or ([] if inner is None else [inner])
        if root := getattr(dataset, 'data_root', None):
            roots[str(root).rstrip('/')] = None
    return number + (f' in {", ".join(roots)}' if roots else '')


@HOOKS.register_module()
class EmptyResultHook(Hook):
    """Says why an evaluation has no figures when the model detected nothing at all."""

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self._explain(runner, runner.val_loop, metrics)

    def after_test_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        self._explain(runner, runner.test_loop, metrics)

    @staticmethod
    def _explain(runner, loop, metrics: dict[str, float] | None) -> None:
        # Those that only write files have no figures to give.
        measuring = any(
            not (isinstance(metric, DumpResults) or getattr(metric, 'format_only', False))
            for metric in loop.evaluator.metrics
        )
        if measuring and not metrics:
            runner.logger.warning(
                'No AP: no detection scored above test_cfg.score_thr. This is usual after a '
                'very short training or from random weights; train longer or lower the threshold.'
            )


@HOOKS.register_module()
class ResumableEarlyStoppingHook(EarlyStoppingHook):
    """mmengine's EarlyStoppingHook, which a resumed run does not begin again."""

    def state_dict(self) -> dict[str, Any]:
        return dict(
            monitor=self.monitor, wait_count=self.wait_count, best_score=float(self.best_score)
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state.get('monitor', self.monitor) == self.monitor:
            self.wait_count, self.best_score = int(state['wait_count']), state['best_score']


@HOOKS.register_module()
class SteadyLoggerHook(LoggerHook):
    """mmengine's LoggerHook; metrics that can't be written are lost, and the run continues."""

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        with _surviving(runner):
            super().after_train_iter(runner, batch_idx, data_batch, outputs)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        with _surviving(runner):
            super().after_val_epoch(runner, metrics)


@contextmanager
def _surviving(runner) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        runner.logger.error(f'The metrics could not be written ({error}); training continues')


@HOOKS.register_module()
class FuseHook(Hook):
    """Folds the backbone for inference when a test starts, its weights loaded."""

    def before_test(self, runner) -> None:
        model = bare_model(runner)
        if not isinstance(model.backbone, MetaFormer):
            raise UserError(
                f'--fuse: the backbone {type(model.backbone).__name__} can not be folded'
            )
        model.backbone.fuse()
        runner.logger.info('The backbone is folded: norms and layer scales are in the weights.')
