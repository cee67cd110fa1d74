"""The tiny run with a numerical guard, and with losses and gradients that go wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPERS
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny

VALUES = {'nan': float('nan'), 'inf': float('inf'), '-inf': float('-inf'), 'big': 1e30}
PARAMETERS = [
    'features.0.weight',
    'features.0.bias',
    'features.1.weight',
    'features.5.bias',
    'classifier.weight',
]


@MODELS.register_module()
class NamedModel(tiny.TinyModel):
    """The tiny model with batches that name their images."""

    def forward(self, data_samples: Any = None, **inputs: Any) -> Any:
        return super().forward(**inputs)


@DATASETS.register_module()
class NamedDataset(tiny.TinyDataset):
    """The tiny data, each image with a name."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        meta = dict(img_path=f'train/{int(index):03}.jpg', img_id=int(index))
        return super().__getitem__(index) | dict(data_samples=BaseDataElement(metainfo=meta))


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(OptimWrapper):
    """Steps as AmpOptimWrapper does, which refuses to be built without a GPU."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.loss_scaler = torch.amp.GradScaler('cpu')

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.loss_scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        if self.clip_grad_kwargs:
            self.loss_scaler.unscale_(self.optimizer)
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update()


@HOOKS.register_module()
class Poison(Hook):
    """Makes losses and gradients go wrong at given iterations.

    Args:
        losses: Iterations in which one image gets a value, which also spoils BatchNorm's buffers.
        gradients: Iterations, each with the parameter of whose gradient one entry gets a value.
        value: A key of VALUES.
        rank: Only there; None for all ranks.
    """

    def __init__(
        self,
        losses: tuple[int, ...] = (),
        gradients: dict[int, str] | None = None,
        value: str = 'nan',
        rank: int | None = None,
    ) -> None:
        self.losses, self.gradients = set(losses), dict(gradients or {})
        self.value, self.rank = VALUES[value], rank
        self.images: dict[int, list[int]] = {}

    def before_train(self, runner: Runner) -> None:
        for name, parameter in bare(runner).named_parameters():
            parameter.register_hook(lambda grad, name=name: self._spoil(runner, name, grad))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.images[runner.iter] = [sample.img_id for sample in data_batch['data_samples']]
        if runner.iter in self.losses and self.rank in (None, runner.rank):
            data_batch['inputs'][0][0, 0, 0] = self.value

    def _spoil(self, runner: Runner, name: str, grad: Tensor) -> Tensor:
        if self.gradients.get(runner.iter) == name and self.rank in (None, runner.rank):
            grad = grad.clone()
            grad.view(-1)[-1] = self.value
        return grad


@HOOKS.register_module()
class Trace(Hook):
    """Keeps checksums of everything that a step may change, before and after each iteration."""

    priority = 'LOWEST'

    def before_train(self, runner: Runner) -> None:
        self.states = {-1: state_of(runner)}
        self.steps: list[int] = []
        optimizer = runner.optim_wrapper.optimizer
        optimizer.register_step_post_hook(lambda *_: self.steps.append(runner.iter))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.states[runner.iter] = state_of(runner)

    def unchanged(self, iteration: int) -> set[str]:
        """The parts that the iteration left as they were."""
        before, after = self.states[iteration - 1], self.states[iteration]
        return {part for part in after if after[part] == before[part]}


def bare(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def state_of(runner: Runner) -> dict[str, str]:
    model = bare(runner)
    parts = {
        'parameters': dict(model.named_parameters()),
        'buffers': dict(model.named_buffers()),
        'optimizer': runner.optim_wrapper.optimizer.state_dict()['state'],
        'average': [h.ema_model.state_dict() for h in runner.hooks if isinstance(h, EMAHook)],
    }
    return {name: tiny.checksum(part) for name, part in parts.items()}


ALL = {'parameters', 'buffers', 'optimizer', 'average'}


def guarded_runner(folder: Path, poison: dict, guard: dict | None = None, **options: Any) -> Runner:
    hooks = [dict(type='Trace'), dict(type='Poison', **poison)]
    wrapper = options.pop('wrapper', 'OptimWrapper')
    average = options.pop('average', 'EMAHook')
    cfg = tiny.tiny_config(folder, ema=True, hooks=hooks, **options)
    cfg.custom_hooks = [dict(type='NumericalGuardHook', **(guard or {})), *cfg.custom_hooks]
    cfg.custom_hooks[-1].update(type=average, update_buffers=True)
    cfg.model.type = 'NamedModel'
    cfg.train_dataloader.dataset.type = 'NamedDataset'
    cfg.optim_wrapper.type = wrapper
    return build_runner(cfg)


def hook_of(runner: Runner, kind: type[Hook]) -> Any:
    return next(hook for hook in runner.hooks if isinstance(hook, kind))


def alarms(runner: Runner) -> list[str]:
    """The lines of the log in which the guard speaks."""
    lines = Path(runner.log_dir, f'{runner.timestamp}.log').read_text().splitlines()
    return [line for line in lines if 'Not finite at iteration' in line]


def train_rank(folder: Path, poison: dict, options: dict) -> dict[str, Any]:
    runner = guarded_runner(folder, poison, launcher='pytorch', ranks=2, **options)
    runner.train()
    trace = hook_of(runner, Trace)
    images = hook_of(runner, Poison).images
    lines = alarms(runner) if runner.rank == 0 else []
    return dict(
        unchanged=[trace.unchanged(i) for i in range(12)],
        states=[trace.states[i] for i in range(12)],
        lines=lines,
        images=images,
    )
