"""From a config to a Runner, on GPUs or a plain CPU."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import subprocess
from collections.abc import Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.optim import OptimWrapper
from mmengine.registry import METRICS
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

from backbones.checkpoints import safe_reading

from ..errors import UserError
from .hooks import BatchReportHook, batch_factors
from .loops import ExactEpochBasedTrainLoop, ExactIterBasedTrainLoop
from .workers import clear_errors, with_timeout

# Until the Runner enters it for its own time, what `build_runner` chose stays for the process.
_READING = contextlib.ExitStack()


class ScalingRunner(Runner):
    """mmengine's Runner, with accumulated batches counted when the learning rate is scaled.

    Where the config names mmengine's training loops, it takes ours, which resume exactly.
    """

    @staticmethod
    def build_dataloader(
        dataloader: DataLoader | dict[str, Any],
        seed: int | None = None,
        diff_rank_seed: bool = False,
    ) -> DataLoader:
        """Build a loader as mmengine does; it does not wait for a stuck worker for ever."""
        if not isinstance(dataloader, DataLoader):
            dataloader = with_timeout(dataloader)
        return Runner.build_dataloader(dataloader, seed, diff_rank_seed)

    def train(self) -> nn.Module:
        """Train; a dead or stuck worker is an error of one line."""
        with clear_errors():
            return super().train()

    def build_train_loop(self, loop: BaseLoop | dict[str, Any]) -> BaseLoop:
        return super().build_train_loop(_exact(loop) if isinstance(loop, dict) else loop)

    def scale_lr(
        self, optim_wrapper: OptimWrapper, auto_scale_lr: dict[str, Any] | None = None
    ) -> None:
        """Scale the learning rate linearly; called before the schedules are built from it."""
        if auto_scale_lr and auto_scale_lr.get('enable'):
            ratio = math.prod(batch_factors(self.cfg)) / auto_scale_lr['base_batch_size']
            # Beside the optimizer's groups, the wrapper has the one whose rate the log shows.
            for group in optim_wrapper.param_groups:
                group['lr'] *= ratio


def _exact(loop: dict[str, Any]) -> dict[str, Any]:
    """Return a training loop's config with our loop in place of mmengine's."""
    if 'type' in loop and 'by_epoch' in loop:
        return loop  # mmengine refuses both
    by_epoch = loop.get('by_epoch')
    kind = loop.get('type', 'EpochBasedTrainLoop' if by_epoch else 'IterBasedTrainLoop')
    for ours in (ExactEpochBasedTrainLoop, ExactIterBasedTrainLoop):
        name = ours.__name__.removeprefix('Exact')
        if getattr(kind, '__name__', kind) in (name, f'mmengine.{name}'):
            kind = ours.__name__
    return {key: value for key, value in loop.items() if key != 'by_epoch'} | dict(type=kind)


def build_runner(cfg: Config, unsafe_load: bool = False) -> Runner:
    """Build the Runner; without a GPU, use gloo between processes and plain batch norm.

    Every checkpoint that the run loads from a file is read by `backbones.checkpoints`.

    Args:
        cfg: The config, from `load_config`.
        unsafe_load: Run the code that checkpoints hold.

    Raises:
        UserError: The launcher does not fit: torchrun's without torchrun, Slurm's without srun,
            MPI's without GPUs; or an evaluator's package is not installed.
    """
    for launcher, variable, remedy in (
        ('pytorch', 'RANK', 'is for torchrun: start with tools/dist_train.sh'),
        ('slurm', 'SLURM_PROCID', "is for Slurm's srun: start with tools/slurm_train.sh"),
    ):
        if cfg.launcher == launcher and variable not in os.environ:
            raise UserError(f'--launcher {launcher} {remedy}')
    _check_evaluators(cfg)
    notes = [] if torch.cuda.is_available() else _adapt_to_cpu(cfg)
    _READING.enter_context(safe_reading(unsafe_load))
    if cfg.get('visualizer'):
        # The bases' name would bring back the visualizer of an earlier run in this process, which
        # writes to that run's folder.
        cfg.visualizer.name = os.path.abspath(cfg.work_dir)
    runner = ScalingRunner.from_cfg(cfg)
    runner.register_hook(BatchReportHook())
    for note in notes:
        runner.logger.info(note)
    return runner


def _check_evaluators(cfg: Config) -> None:
    """Refuse FasterCocoMetric where it can't run: it would only say so after the first epoch."""
    for split in ('val', 'test'):
        metrics = cfg.get(f'{split}_evaluator') or []
        for metric in [metrics] if isinstance(metrics, dict) else metrics:
            if metric.get('type') != 'FasterCocoMetric':
                continue
            with METRICS.switch_scope_and_registry(None) as registry:
                known = 'FasterCocoMetric' in registry
            if not known:
                raise UserError(
                    f'{split}_evaluator: the installed mmdet has no FasterCocoMetric (the '
                    "maintained line's has); take type=CocoMetric"
                )
            if importlib.util.find_spec('faster_coco_eval') is None:
                raise UserError(
                    f'{split}_evaluator: FasterCocoMetric needs faster-coco-eval: '
                    "pip install 'faster-coco-eval>=1.8,<2', or take type=CocoMetric"
                )


def _adapt_to_cpu(cfg: Config) -> list[str]:
    notes = []
    converted = _replace_sync_bn(cfg.model)
    if converted:
        notes.append(
            f'No GPU: SyncBN (in {", ".join(converted)}) is replaced by BN, whose statistics are '
            'of one process alone.'
        )
    if cfg.launcher == 'mpi':
        raise UserError(
            '--launcher mpi needs GPUs and torch sees none; make doctor says why. '
            'CPU processes are started by tools/dist_train.sh'
        )
    if cfg.launcher != 'none' and not is_distributed():
        if cfg.launcher == 'slurm':
            _adopt_slurm_variables()
        # mmengine's own launchers call torch.cuda.set_device whatever the backend.
        torch.distributed.init_process_group('gloo')
    if cfg.launcher != 'none':
        wrapper = cfg.get('model_wrapper_cfg') or {}
        cfg.model_wrapper_cfg = dict(
            type='MMDistributedDataParallel', device_ids=None, broadcast_buffers=False
        ) | dict(wrapper)
        notes.append('No GPU: the processes talk through gloo.')
    return notes


def _adopt_slurm_variables() -> None:
    """Tell torch.distributed what Slurm tells; the first node of the job is the master."""
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['LOCAL_RANK'] = os.environ['SLURM_LOCALID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        os.environ['MASTER_ADDR'] = nodes.split()[0]


def _replace_sync_bn(node: Any, place: str = 'model') -> list[str]:
    """Turn SyncBN into BN in a model config, in place; return the places."""
    if isinstance(node, dict):
        if node.get('type') == 'SyncBN':
            node['type'] = 'BN'
            return [place]
        children = list(node.items())
    elif isinstance(node, Sequence) and not isinstance(node, str):
        children = list(enumerate(node))
    else:
        return []
    return [found for key, child in children for found in _replace_sync_bn(child, f'{place}.{key}')]
