"""The Runner: mmengine's, with what a run needs that must not be lost.

`DenseRunner` overrides the methods that mmengine's Runner offers. A config that names it with
``runner_type`` gives the same run from the tools of this project, from those of mmdet and mmseg,
and from ``RUNNERS.build(cfg)``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.registry import DATASETS, LOOPS, METRICS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from ..config.preflight.packages import faster_coco_fault
from ..config.preflight.precision import mixed_precision_fault
from ..config.store_paths import refuse_stores
from ..config.walk import entries_of
from ..console import ASIDE, adopt_logger, current_console
from ..data.label_order import check_order_as_built, in_class_order
from ..errors import UserError
from .agreement import collecting_anywhere
from .compiling import compile_parts
from .display import LiveLineHook
from .folder_lock import alone_in
from .hooks import BatchReportHook, EmptyResultHook, StartReportHook, batch_factors
from .launch import join_processes
from .learning_rates import idle_keys
from .loader import can_be_rebuilt, with_options_of
from .loading import LoadingRunner
from .loops import EVALUATING, EXACT, OwnLoader
from .memory_layout import keep_layout
from .mixed_precision import for_this_device, keep_edges_in_float32
from .numerical_guard import GuardedOptimWrapper, NumericalGuardHook, guarded
from .preemption import PreemptionHook
from .process import run_process
from .quarantine import DirtyDataHook
from .ranks import failing_together
from .state import bare_model
from .substitutes import substitute
from .tracking import TrackingHook, continued, is_tracker
from .waiting import enter, enter_hooks, leave_hooks
from .workers import clear_errors, fit_workers, with_room

_numbers = itertools.count()
# Hooks that every run has, unless default_hooks has None under the name.
_ALWAYS: dict[str, type[Hook]] = dict(
    numerical_guard=NumericalGuardHook,
    dirty_data=DirtyDataHook,
    preemption=PreemptionHook,
    start_report=StartReportHook,
    batch_report=BatchReportHook,
    empty_result=EmptyResultHook,
    tracking=TrackingHook,
)


@RUNNERS.register_module()
class DenseRunner(LoadingRunner):
    """mmengine's Runner for runs that survive kills, full disks, bad data and bad gradients.

    What it saves is in `SavingRunner`, how it loads and resumes in `LoadingRunner`; here is what it
    builds and runs.
    """

    # Backends whose runs on a server are continued when the training is resumed.
    tracker_names: Sequence[str] = ()

    # --- building ------------------------------------------------------------------------------

    @classmethod
    def from_cfg(cls, cfg: Config | dict) -> DenseRunner:
        refuse_stores(cfg)
        return super().from_cfg(cfg)

    def setup_env(self, env_cfg: dict) -> None:
        super().setup_env(join_processes(self.launcher, env_cfg))
        enter('the start', busy=True)

    def build_logger(
        self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """Build the logger; what it shows on the console of a tool of ours, `ToolConsole` says."""
        return adopt_logger(super().build_logger(log_level, log_file, **kwargs))

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build this run's visualizer; by its name in the config it would be an earlier run's."""
        if isinstance(visualizer, dict):
            given = entries_of(visualizer.get('vis_backends'))
            backends = [continued(backend, self.work_dir) for _, backend in given]
            # Two runs that begin within a second have one log_dir.
            name = f'{self.log_dir} ({next(_numbers)})'
            self.tracker_names = [b['name'] for b in backends if is_tracker(b)]
            visualizer = {**visualizer, 'name': name, 'vis_backends': backends}
        return super().build_visualizer(visualizer)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; what follows our backbone computes in the backbone's layout."""
        return keep_layout(super().build_model(model))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model; without a GPU, for gloo and with BN in place of SyncBN.

        One without parameters, which an exported file is, stays as it is: DDP refuses it.
        """
        if next(model.parameters(), None) is None:
            return model
        if self.distributed and not torch.cuda.is_available() and not is_model_wrapper(model):
            self.logger.info(
                'No GPU: the processes use the gloo backend, and SyncBN is replaced by BN, whose '
                'statistics are per process.'
            )
            model = revert_sync_batchnorm(model)
            model_wrapper_cfg = dict(
                type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
            ) | dict(model_wrapper_cfg or {})
        return super().wrap_model(model_wrapper_cfg, model)

    def register_hooks(
        self,
        default_hooks: dict[str, Hook | dict] | None = None,
        custom_hooks: list[Hook | dict] | None = None,
    ) -> None:
        """Register the config's hooks, and those that every run has."""
        given = dict(default_hooks or {})
        unwanted = {name for name, hook in given.items() if hook is None}
        # mmengine takes None only for its own names; `Hook` does nothing.
        idle = {name: Hook() for name in unwanted - _ALWAYS.keys()}
        wanted = {name: hook for name, hook in given.items() if name not in unwanted}
        super().register_hooks(wanted | idle, custom_hooks)
        for name, kind in _ALWAYS.items():
            if name not in unwanted and not any(isinstance(hook, kind) for hook in self.hooks):
                self.register_hook(kind())
        console = current_console()
        if console is not None and console.terminal and is_main_process():
            self.register_hook(LiveLineHook(console))

    def register_hook(self, hook: Hook | dict, priority: Any = None) -> None:
        """Register a hook; of those that lose something in a stopped run, our subclass."""
        super().register_hook(substitute(hook, self.logger), priority)

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a loader as mmengine does, with what suits its number of workers, watched.

        Labels of COCO data sets follow ``metainfo.classes``.
        """
        if isinstance(dataloader, DataLoader):
            check_order_as_built(dataloader.dataset)
        else:
            dataset = in_class_order(dataloader['dataset'], DATASETS)
            dataloader = with_room(fit_workers({**dataloader, 'dataset': dataset}))
        built = Runner.build_dataloader(dataloader, seed, diff_rank_seed)
        return with_options_of(built, built.dataset) if can_be_rebuilt(built) else built

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        """Build the training's loop; of mmengine's two, our subclass, which resumes exactly."""
        if isinstance(loop, dict) and not {'type', 'by_epoch'} <= loop.keys():
            by_epoch = loop.get('by_epoch', False)
            kind = loop.get('type', 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop')
            kind = LOOPS.get(kind) if isinstance(kind, str) else kind
            if kind in EXACT:
                loop = {key: value for key, value in loop.items() if key != 'by_epoch'}
                loop['type'] = EXACT[kind]
                self.logger.info(
                    f'{kind.__name__}: {EXACT[kind].__name__} takes its place.', extra=ASIDE
                )
        return super().build_train_loop(loop)

    def build_val_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return super().build_val_loop(self._evaluating(loop, 'ValLoop'))

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return super().build_test_loop(self._evaluating(loop, 'TestLoop'))

    def _evaluating(
        self, loop: BaseLoop | dict[str, Any], default: str
    ) -> BaseLoop | dict[str, Any]:
        """Of mmengine's loop for validation or test, ours, which takes images of several sizes."""
        if not isinstance(loop, dict):
            return loop
        if loop.get('fp16'):
            keep_edges_in_float32(self.model)
        kind = loop.get('type', default)
        kind = LOOPS.get(kind) if isinstance(kind, str) else kind
        return {**loop, 'type': EVALUATING.get(kind, kind)}

    def build_optim_wrapper(
        self, optim_wrapper: OptimWrapper | dict[str, Any]
    ) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer's wrapper, of whatever class, with the numerical guard in it."""
        if fault := mixed_precision_fault(optim_wrapper):
            raise UserError(fault)
        for line in idle_keys(optim_wrapper, dict(bare_model(self).named_parameters())):
            self.logger.warning(line)
        guard = next((hook for hook in self.hooks if isinstance(hook, NumericalGuardHook)), None)
        if isinstance(optim_wrapper, dict) and 'optimizer' in optim_wrapper:
            kind = optim_wrapper.get('type', 'OptimWrapper')
            kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
            mixed = issubclass(kind, AmpOptimWrapper)
            if mixed:
                keep_edges_in_float32(self.model)
            if for_this_device(kind) is not kind:
                kind = for_this_device(kind)
                self.logger.info('Mixed precision: bfloat16 autocast on the CPU.')
            if guard is not None:
                kind = guarded(kind)
                self.logger.info(
                    f'{kind.__name__}: its steps are guarded by NumericalGuardHook.', extra=ASIDE
                )
            optim_wrapper = {**optim_wrapper, 'type': kind}
        built = super().build_optim_wrapper(optim_wrapper)
        if isinstance(built, GuardedOptimWrapper):
            built.guard = guard
        return built

    def build_evaluator(self, evaluator: Evaluator | dict | list) -> Evaluator:
        # Other tools than ours have no preflight.
        if fault := faster_coco_fault(evaluator):
            raise UserError(fault)
        evaluator = in_class_order(evaluator, METRICS)
        return super().build_evaluator(collecting_anywhere(evaluator, self.logger))

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None
    ) -> None:
        """Scale the learning rate linearly, by the batch that accumulation makes too."""
        if auto_scale_lr and auto_scale_lr.get('enable'):
            ratio = math.prod(batch_factors(self.cfg)) / auto_scale_lr['base_batch_size']
            # Besides the optimizer's groups, the wrapper has the one whose rate the log shows.
            for group in optim_wrapper.param_groups:
                group['lr'] *= ratio

    # --- running -------------------------------------------------------------------------------

    def train(self) -> nn.Module:
        """Train; a dead or stuck worker is an error of one line.

        Raises:
            UserError: Another process trains in the work directory, or a worker died or is stuck.
        """
        with ExitStack() as stack:
            with failing_together():
                if is_main_process():
                    stack.enter_context(alone_in(self.work_dir))
            stack.enter_context(run_process(self.unsafe_load, training=True))
            stack.enter_context(self._live_line())
            stack.enter_context(clear_errors())
            stack.enter_context(self._own_workers())
            return super().train()

    def val(self) -> dict:
        with self._evaluation('val'):
            self._maybe_compile('val_step')
            return super().val()

    def test(self) -> dict:
        with self._evaluation('test'):
            self._maybe_compile('test_step')
            return super().test()

    @contextmanager
    def _evaluation(self, split: str) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(run_process(self.unsafe_load))
            stack.enter_context(self._live_line())
            stack.enter_context(clear_errors(split, training=False))
            stack.enter_context(self._own_workers())
            yield

    @contextmanager
    def _own_workers(self) -> Iterator[None]:
        """End the loaders' workers, which torch keeps for as long as the loaders are there."""
        try:
            yield
        finally:
            for loop in (self._train_loop, self._val_loop, self._test_loop):
                if isinstance(loop, OwnLoader):
                    loop.end_workers()

    def _maybe_compile(self, target: str) -> None:
        """Compile parts of the model, if the config says so; a whole step breaks in many graphs."""
        options = self.cfg.get('compile')
        if options is None or options is False:
            return
        parts = compile_parts(bare_model(self), **({} if options is True else options))
        if not parts:
            super()._maybe_compile(target)
            return
        self.logger.info(f'torch.compile: {" and ".join(parts)}; the first images take longer')

    def _live_line(self) -> AbstractContextManager[None]:
        lines = [hook for hook in self.hooks if isinstance(hook, LiveLineHook)]
        return lines[0] if lines else nullcontext()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_val_epoch':
            # What is saved from here on needs no validation when it is resumed.
            self.position.settle()
        batch = kwargs.get('batch_idx', 0)
        enter_hooks(self, fn_name, batch)
        super().call_hook(fn_name, **kwargs)
        leave_hooks(self, fn_name, batch)


def build_runner(cfg: Config, unsafe_load: bool = False) -> Runner:
    """Build the Runner that a config names, a `DenseRunner` if it names none.

    Args:
        cfg: The config, from `config.load.load_config`.
        unsafe_load: Run the code that checkpoints hold.

    Raises:
        UserError: The launcher does not fit.
    """
    cfg.setdefault('runner_type', 'DenseRunner')
    runner = RUNNERS.build(cfg)
    if unsafe_load:
        runner.unsafe_load = True
    return runner
