"""The Runner: mmengine's, with what a run needs that must not be lost.

`DenseRunner` overrides the methods that mmengine's Runner offers. A config that names it with
``runner_type`` gives the same run from the tools of this project, from those of mmdet and mmseg,
and from ``RUNNERS.build(cfg)``.
"""

from __future__ import annotations

import importlib.util
import math
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import get_world_size, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.fileio import LocalBackend, get_file_backend
from mmengine.hooks import Hook
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper, revert_sync_batchnorm
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import DATASETS, LOOPS, METRICS, OPTIM_WRAPPERS, RUNNERS
from mmengine.runner import BaseLoop, Runner, save_checkpoint, weights_to_cpu
from mmengine.utils import apply_to
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from backbones import __version__
from backbones.checkpoints import (
    CheckpointError,
    fit,
    read_checkpoint,
    reorder_optimizer,
    weights_of,
)

from ..config.datasets import checkpoint_classes
from ..config.walk import nodes_of_type
from ..console import ASIDE, adopt_logger, current_console
from ..data.faults import first_names
from ..data.label_order import check_order_as_built, in_class_order
from ..errors import UserError
from ..files import save_sealed
from .changed_config import Difference, compare_with_checkpoint, use_what_is_restored
from .display import LiveLineHook
from .folder_lock import alone_in
from .hooks import BatchReportHook, EmptyResultHook, StartReportHook, batch_factors
from .launch import join_processes
from .loops import EVALUATING, EXACT, ExactResume
from .numerical_guard import GuardedOptimWrapper, NumericalGuardHook, guarded
from .preemption import PreemptionHook
from .process import run_process
from .quarantine import DirtyDataHook
from .ranks import write_on_main
from .resume import checkpoint_to_resume, last_save, note_start
from .state import (
    AccumulatedGradients,
    Position,
    RandomStates,
    RankBuffers,
    Stateful,
    bare_model,
    upgrade,
)
from .substitutes import substitute
from .workers import clear_errors, fit_workers

# Hooks that every run has, unless default_hooks has None under the name.
_ALWAYS: dict[str, type[Hook]] = dict(
    numerical_guard=NumericalGuardHook,
    dirty_data=DirtyDataHook,
    preemption=PreemptionHook,
    start_report=StartReportHook,
    batch_report=BatchReportHook,
    empty_result=EmptyResultHook,
)


@RUNNERS.register_module()
class DenseRunner(Runner):
    """mmengine's Runner for runs that survive kills, full disks, bad data and bad gradients.

    Attributes:
        unsafe_load: Whether checkpoints may run the code that they hold.
        loaded_from: The checkpoint that was loaded or resumed; None before.
    """

    unsafe_load: bool = False
    loaded_from: str | None = None
    _resume: bool
    _load_from: str | None
    _has_loaded: bool
    # The checkpoint that was read to choose it, until it is loaded.
    _examined: tuple[str, dict[str, Any]] | None = None
    # The time in the checkpoint that was saved last; None before a save.
    _saved_at: float | None = None
    # In what the config differs from that of the checkpoint that is resumed from.
    _changes: Sequence[Difference] = ()
    # What `restore_run_state` will bring back; None if the run is not resumed.
    _to_restore: dict[str, Any] | None = None
    # Within `saving_together`, what all ranks contribute to a checkpoint.
    _run_state: dict[str, Any] | None = None

    # --- what a checkpoint holds ---------------------------------------------------------------

    def resumable(self) -> dict[str, Stateful]:
        """Everything that a resumed run needs, by its name in the checkpoint's ``run_state``.

        Beside it, a checkpoint has mmengine's own entries: ``state_dict``, ``optimizer`` (with the
        gradient scaler), ``param_schedulers``, ``message_hub`` (log, best score, files to delete),
        ``meta`` (seed, iteration, config) and ``ema_state_dict`` of an `EMAHook`.
        """
        loop = self.train_loop
        parts: dict[str, Stateful] = dict(
            position=self.position,
            sampler=loop,
            accumulation=AccumulatedGradients(self),
            buffers=RankBuffers(self),
        )
        if loop.quarantine is not None:
            parts['quarantine'] = loop.quarantine
        # The numerical guard, early stopping, and hooks of other projects that can be resumed. Of
        # several of a type the last has its plain name, as in checkpoints that have but one.
        seen: Counter[str] = Counter()
        for hook in reversed(self.hooks):
            if isinstance(hook, Stateful):
                name = type(hook).__name__
                seen[name] += 1
                parts[name if seen[name] == 1 else f'{name}.{seen[name]}'] = hook
        return parts | dict(random=self.random)

    @cached_property
    def position(self) -> Position:
        """Where the training stands."""
        return Position()

    @cached_property
    def random(self) -> RandomStates:
        """The random generators of all ranks."""
        return RandomStates(self)

    @property
    def resumed(self) -> bool:
        """Whether the run continues another one."""
        return self._resume and self._has_loaded

    @contextmanager
    def saving_together(self) -> Iterator[None]:
        """Within the block all ranks save: their states go into the checkpoint.

        All ranks must enter it and call `save_checkpoint` in it; outside, only the main rank saves,
        as in mmengine, and the file can't be resumed exactly.
        """
        if self._run_state is not None:
            yield
            return
        exact = isinstance(self.train_loop, ExactResume)
        parts = self.resumable() if exact else {}
        self._run_state = {name: part.state_dict() for name, part in parts.items()}
        try:
            yield
        finally:
            self._run_state = None

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a checkpoint that is complete and on disk once it has its name.

        Args:
            out_dir: The folder, or the prefix of an object store.
            filename: The name in it.
            file_client_args: As for mmengine.
            save_optimizer: Whether to save the optimizer.
            save_param_scheduler: Whether to save the schedules.
            meta: Entries for ``meta``.
            by_epoch: Whether ``meta`` counts an epoch as complete, or else an iteration.
            backend_args: As for mmengine.

        Raises:
            OSError: Outside `saving_together`: it could not be written.
            SaveFailed: Within it, on all ranks: the same.
        """

        def write() -> None:
            checkpoint = self._checkpoint(save_optimizer, save_param_scheduler, meta, by_epoch)
            self.call_hook('before_save_checkpoint', checkpoint=checkpoint)
            backend = get_file_backend(out_dir, backend_args=backend_args)
            path = backend.join_path(out_dir, filename)
            if isinstance(backend, LocalBackend) and not file_client_args:
                mmengine.mkdir_or_exist(out_dir)
                save_sealed(checkpoint, path)
            else:
                save_checkpoint(checkpoint, path, file_client_args, backend_args)

        if self._run_state is not None:
            write_on_main(filename, write)
        elif is_main_process():
            write()

    def _checkpoint(
        self, optimizer: bool, schedulers: bool, meta: dict | None, by_epoch: bool
    ) -> dict[str, Any]:
        """Return what mmengine's Runner saves, and the state of the run."""
        done = dict(epoch=self.epoch + by_epoch, iter=self.iter + (not by_epoch))
        checkpoint = dict(
            meta=done
            | (meta or {})
            | dict(
                cfg=self.cfg.pretty_text,
                seed=self.seed,
                experiment_name=self.experiment_name,
                time=time.strftime('%Y%m%d_%H%M%S', time.localtime()),
                saved_at=self._time_of_save(),
                mmengine_version=mmengine.__version__,
                poolformer_dense_version=__version__,
            ),
            state_dict=weights_to_cpu(bare_model(self).state_dict()),
            message_hub=_on_cpu(self.message_hub.state_dict()),
        )
        if hasattr(self.train_dataloader.dataset, 'metainfo'):
            checkpoint['meta']['dataset_meta'] = self.train_dataloader.dataset.metainfo
        if optimizer:
            checkpoint['optimizer'] = _on_cpu(self.optim_wrapper.state_dict())
        if schedulers and self.param_schedulers is not None:
            several = isinstance(self.param_schedulers, dict)
            groups = self.param_schedulers if several else {'': self.param_schedulers}
            states = {name: [s.state_dict() for s in group] for name, group in groups.items()}
            checkpoint['param_schedulers'] = states if several else states['']
        if self._run_state:
            checkpoint['run_state'] = self._run_state
        return checkpoint

    def _time_of_save(self) -> float:
        """Seconds since 1970, later than in all checkpoints of the folder, whatever the clock."""
        last = last_save(self.work_dir) if self._saved_at is None else self._saved_at
        self._saved_at = max(time.time(), math.nextafter(last, math.inf))
        return self._saved_at

    # --- loading and resuming ------------------------------------------------------------------

    def load_or_resume(self) -> None:
        """Load or resume as the config says; what is resumed is the newest intact checkpoint."""
        begins = False
        if not self._has_loaded and self._train_loop is not None:
            automatic = self._resume and self._load_from is None
            path = checkpoint_to_resume(self.work_dir, automatic, self.logger, self._examine)
            if path is not None:
                self._resume, self._load_from = True, path
                self.logger.info(f'Resuming from {path}.')
            begins = path is None and isinstance(self._train_loop, BaseLoop)
        super().load_or_resume()
        self._examined = None
        use_what_is_restored(self, self._changes)
        if begins and is_main_process():
            note_start(self.work_dir, self._load_from if self._resume else None, self.logger)

    def _examine(self, path: Path) -> None:
        """Read a checkpoint to see whether it can be."""
        self._examined = None
        self._examined = str(path), read_checkpoint(path, get_device())

    def load_checkpoint(
        self,
        filename: str,
        map_location: Any = 'cpu',
        strict: bool = True,
        revise_keys: Sequence[tuple[str, str]] = ((r'^module\.', ''),),
    ) -> dict[str, Any]:
        """Load a checkpoint entirely or not at all; code that it holds is not run.

        The backbone may be in any layout that `backbones.checkpoints` knows. Fine-tuning
        (``load_from`` in training) may give the heads other shapes, for other classes: those
        tensors are named and start from their initialisation.

        Args:
            filename: A path, a URL, or a name that mmengine or `backbones.weights` knows.
            map_location: As for `torch.load`.
            strict: False loads what fits, as mmengine does.
            revise_keys: Patterns and what replaces them in the names.

        Raises:
            CheckpointError: The file can't be read, does not fit, or is not finite; the model is
                untouched.
            UserError: It was trained with the classes in another order, or the run resumes with an
                optimizer or schedules that do not fit it.
        """
        if not strict:
            with run_process(self.unsafe_load):
                return super().load_checkpoint(filename, map_location, strict, list(revise_keys))
        examined, self._examined = self._examined, None
        if examined is not None and examined[0] == filename:
            checkpoint = examined[1]
        else:
            checkpoint = read_checkpoint(filename, map_location, self.unsafe_load)
        if self._resume and not {'optimizer', 'message_hub'} <= set(checkpoint):
            raise CheckpointError(
                'the checkpoint to resume from holds only weights; to start from them, use '
                '--cfg-options load_from=PATH instead of --resume'
            )
        model = bare_model(self)
        weights = weights_of(checkpoint, filename)
        for pattern, replacement in revise_keys:
            weights = {re.sub(pattern, replacement, name): w for name, w in weights.items()}
        training = isinstance(self.optim_wrapper, (OptimWrapper, OptimWrapperDict))
        fitted = fit(weights, model, training and not self._resume, source=filename)
        self._check_classes(checkpoint, filename, bool(fitted.fresh))
        if self._resume and any(theirs != ours for theirs, ours in fitted.names.items()):
            checkpoint['optimizer'] = reorder_optimizer(
                checkpoint['optimizer'], fitted.names.values(), model
            )
        if self._resume:
            self._changes = compare_with_checkpoint(self, checkpoint)
        if 'state_dict' not in checkpoint:
            checkpoint = {}
        checkpoint['state_dict'] = fitted.tensors
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        model.load_state_dict(checkpoint['state_dict'], strict=not fitted.fresh)
        if self._resume:
            self._to_restore = upgrade(checkpoint)
        self._has_loaded = True
        self.loaded_from = filename
        self.logger.info(
            f'Load checkpoint from {filename}: {len(fitted.tensors)} tensors'
            + (
                f'; of another shape, initialised from scratch: {", ".join(fitted.fresh)}'
                if fitted.fresh
                else ''
            )
        )
        return checkpoint

    def _check_classes(self, checkpoint: dict[str, Any], filename: str, new_heads: bool) -> None:
        """Refuse labels that mean other classes in the checkpoint than in this run's data."""
        theirs = tuple(checkpoint_classes(checkpoint))
        loops = (self._train_loop, self._val_loop, self._test_loop)
        metas = [
            getattr(loop.dataloader.dataset, 'metainfo', {})
            for loop in loops
            if isinstance(loop, BaseLoop)
        ]
        first = metas[0] if metas and isinstance(metas[0], dict) else {}
        ours = tuple(first.get('classes') or ())
        if not theirs or not ours or theirs == ours:
            return
        names = f'({first_names(theirs)}) than the data set has ({first_names(ours)})'
        if sorted(theirs) == sorted(ours):
            raise UserError(
                f'{filename} was trained with the classes in another order {names}: labels would '
                'mean different things; give each data set the metainfo.classes of the checkpoint'
            )
        if len(theirs) == len(ours) and not new_heads:
            self.logger.warning(f'{filename} was trained with other classes {names}.')

    def restore_run_state(self) -> bool:
        """Bring back the parts of `resumable`; the loops call it when the hooks have begun.

        Returns:
            False if the checkpoint that is resumed from has none of them.
        """
        state, self._to_restore = self._to_restore, None
        if state is None:
            return True
        if not state:
            return False
        saved, now = len(state['random']['ranks']), get_world_size()
        if saved != now:
            self.logger.warning(
                f'The checkpoint was saved by {saved} processes, this run has {now}: random states '
                'are seeded again, so it differs from an uninterrupted run.'
            )
        for name, part in self.resumable().items():
            if name in state:
                part.load_state_dict(state[name])
        return True

    # --- building ------------------------------------------------------------------------------

    def setup_env(self, env_cfg: dict) -> None:
        join_processes(self.launcher)
        super().setup_env(env_cfg)

    def build_logger(
        self, log_level: int | str = 'INFO', log_file: str | None = None, **kwargs: Any
    ) -> MMLogger:
        """Build the logger; what it shows on the console of a tool of ours, `ToolConsole` says."""
        return adopt_logger(super().build_logger(log_level, log_file, **kwargs))

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build this run's visualizer; by its name in the config it would be an earlier run's."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self.log_dir}
        return super().build_visualizer(visualizer)

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model; without a GPU, for gloo and with BN in place of SyncBN."""
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
        """Build a loader as mmengine does, with what suits its number of workers.

        Labels of COCO data sets follow ``metainfo.classes``.
        """
        if isinstance(dataloader, DataLoader):
            check_order_as_built(dataloader.dataset)
        else:
            dataset = in_class_order(dataloader['dataset'], DATASETS)
            dataloader = fit_workers({**dataloader, 'dataset': dataset})
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

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
        return super().build_val_loop(_by_size(loop, 'ValLoop'))

    def build_test_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return super().build_test_loop(_by_size(loop, 'TestLoop'))

    def build_optim_wrapper(
        self, optim_wrapper: OptimWrapper | dict[str, Any]
    ) -> OptimWrapper | OptimWrapperDict:
        """Build the optimizer's wrapper, of whatever class, with the numerical guard in it."""
        guard = next((hook for hook in self.hooks if isinstance(hook, NumericalGuardHook)), None)
        if guard is not None and isinstance(optim_wrapper, dict) and 'optimizer' in optim_wrapper:
            kind = optim_wrapper.get('type', 'OptimWrapper')
            kind = OPTIM_WRAPPERS.get(kind) if isinstance(kind, str) else kind
            optim_wrapper = {**optim_wrapper, 'type': guarded(kind)}
            self.logger.info(
                f'{kind.__name__}: its steps are guarded by NumericalGuardHook.', extra=ASIDE
            )
        built = super().build_optim_wrapper(optim_wrapper)
        if isinstance(built, GuardedOptimWrapper):
            built.guard = guard
        return built

    def build_evaluator(self, evaluator: Evaluator | dict | list) -> Evaluator:
        if any(nodes_of_type(evaluator, 'FasterCocoMetric')):
            _check_faster_coco()
        return super().build_evaluator(in_class_order(evaluator, METRICS))

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
        alone = alone_in(self.work_dir) if is_main_process() else nullcontext()
        process = run_process(self.unsafe_load, training=True)
        with alone, process, self._live_line(), clear_errors():
            return super().train()

    def val(self) -> dict:
        with run_process(self.unsafe_load), self._live_line():
            return super().val()

    def test(self) -> dict:
        with run_process(self.unsafe_load), self._live_line():
            return super().test()

    def _live_line(self) -> AbstractContextManager[None]:
        lines = [hook for hook in self.hooks if isinstance(hook, LiveLineHook)]
        return lines[0] if lines else nullcontext()

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_val_epoch':
            # What is saved from here on needs no validation when it is resumed.
            self.position.settle()
        super().call_hook(fn_name, **kwargs)


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


def _by_size(loop: BaseLoop | dict[str, Any], default: str) -> BaseLoop | dict[str, Any]:
    """Of mmengine's loop for validation or test, ours, which takes images of several sizes."""
    if not isinstance(loop, dict):
        return loop
    kind = loop.get('type', default)
    kind = LOOPS.get(kind) if isinstance(kind, str) else kind
    return {**loop, 'type': EVALUATING.get(kind, kind)}


def _on_cpu(state: Any) -> Any:
    return apply_to(state, lambda value: hasattr(value, 'cpu'), lambda value: value.cpu())


def _check_faster_coco() -> None:
    """Refuse FasterCocoMetric where it can't run: it would only say so after the first epoch."""
    with METRICS.switch_scope_and_registry(None) as registry:
        known = 'FasterCocoMetric' in registry
    if not known:
        raise UserError(
            "the evaluator FasterCocoMetric is not in the installed mmdet (the maintained line's "
            'has it); take type=CocoMetric'
        )
    if importlib.util.find_spec('faster_coco_eval') is None:
        raise UserError(
            'the evaluator FasterCocoMetric needs faster-coco-eval: '
            "pip install 'faster-coco-eval>=1.8,<2', or take type=CocoMetric"
        )
