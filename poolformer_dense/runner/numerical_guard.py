"""A non-finite loss or gradient never reaches the weights."""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.registry import HOOKS
from mmengine.runner import Runner, find_latest_checkpoint
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import UserError
from .state import bare_model, require_dense_runner

_LISTED = 8


class GuardedOptimWrapper(OptimWrapper):
    """What makes an optimizer wrapper step only if a guard lets it; put it before its class.

    Attributes:
        guard: The run's `NumericalGuardHook`; None steps always.
    """

    guard: NumericalGuardHook | None = None

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        super().backward(loss, **kwargs)
        if self.guard is not None:
            self.guard.judge(loss.detach(), self)

    def step(self, **kwargs: Any) -> None:
        if self.guard is None or self.guard.allows_step():
            super().step(**kwargs)


@functools.cache
def guarded(wrapper: type[OptimWrapper]) -> type[OptimWrapper]:
    """Return the class of an optimizer wrapper with `GuardedOptimWrapper` before it."""
    if issubclass(wrapper, GuardedOptimWrapper):
        return wrapper
    return type(f'Guarded{wrapper.__name__}', (GuardedOptimWrapper, wrapper), {})


@HOOKS.register_module()
class GuardedEMAHook(EMAHook):
    """mmengine's EMAHook, which leaves the average as it is where the guard skipped the step."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        guard = getattr(runner.optim_wrapper, 'guard', None)
        if guard is None or not guard.frozen:
            super().after_train_iter(runner, batch_idx, data_batch, outputs)


@HOOKS.register_module()
class NumericalGuardHook(Hook):
    """Skips the optimizer step of every iteration whose loss or gradient is not finite.

    It guards the optimizer wrapper of a `DenseRunner`, which asks it after each backward pass.

    The check is between the backward pass and the step, on every iteration. The processes
    agree on it by reducing two numbers, and one read of them is the only synchronisation with a
    GPU. A skipped step leaves parameters, optimizer state, averaged weights (`GuardedEMAHook`) and
    buffers, such as BatchNorm's statistics, as they were before the iteration; only the schedules
    advance. Of accumulated batches the whole group is dropped, from the bad batch to the group's
    end.

    With a gradient scaler (AMP), infinite gradients are handled by the scaler: it skips the
    step and lowers the scale. They count only after ``scaler_limit`` in a row.

    Args:
        limit: The number of skipped steps in a row that stops the run.
        scaler_limit: The number of steps in a row, skipped by the gradient scaler, that stops the
            run. Its scale has then fallen by 2 to this power.

    Raises:
        UserError: In training: a limit is reached, or there are several optimizers.
    """

    priority = 'HIGH'

    def __init__(self, limit: int = 5, scaler_limit: int = 20) -> None:
        self.limit = limit
        self.scaler_limit = scaler_limit
        self._skipped = 0  # steps in a row
        self._overflows = 0  # steps in a row that the scaler skipped
        self._dropping = False  # the group of accumulated batches at hand
        self._overflow = False  # in the group at hand
        self._bad = False  # this iteration
        self.frozen = False  # this iteration leaves no trace
        self._named: list[str] = []

    def before_train(self, runner) -> None:
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise UserError(
                'NumericalGuardHook guards one optimizer, and optim_wrapper is an '
                'OptimWrapperDict: take the hook out of default_hooks or custom_hooks'
            )
        require_dense_runner(runner, self)
        if getattr(runner.optim_wrapper, 'guard', None) is not self:
            raise UserError(
                'NumericalGuardHook guards an optimizer wrapper that is built from a config: give '
                'optim_wrapper as a dict, or take the hook out'
            )
        self._model = bare_model(runner)
        self._buffers = _Buffers(self._model)

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._bad = self.frozen = False
        self._buffers.save()

    def after_train_iter(
        self, runner, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        if self._bad:
            self._report(runner, data_batch, outputs or {})
        if self._skipped >= self.limit:
            what = f'{self._skipped} steps in a row had a non-finite loss or gradient'
        elif self._overflows >= self.scaler_limit:
            what = (
                f'{self._overflows} steps in a row had non-finite gradients, whatever the scale of '
                'the loss'
            )
        else:
            return
        last = find_latest_checkpoint(runner.work_dir)
        raise UserError(
            f'{what}, the last at iteration {runner.iter + 1}; the log names images, losses and '
            f'parameters. The last good checkpoint is {last or "none yet"}. Resuming meets the '
            'same batches: first lower the learning rate, set optim_wrapper.clip_grad or fix the '
            'images'
        )

    def state_dict(self) -> dict[str, Any]:
        return dict(
            skipped=self._skipped,
            overflows=self._overflows,
            dropping=self._dropping,
            overflow=self._overflow,
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._skipped, self._overflows = state['skipped'], state['overflows']
        self._dropping, self._overflow = state['dropping'], state['overflow']

    def allows_step(self) -> bool:
        """Whether the optimizer may step; called once for each group of accumulated batches."""
        allowed = not self._dropping
        if allowed:
            self._skipped = 0
            self._overflows = self._overflows + 1 if self._overflow else 0
        else:
            self._skipped += 1
        self._dropping = self._overflow = False
        return allowed

    @torch.no_grad()
    def judge(self, loss: Tensor, wrapper: OptimWrapper) -> None:
        """Decide, the same on all processes, whether this iteration may change anything."""
        gradients = [
            p.grad
            for group in wrapper.optimizer.param_groups
            for p in group['params']
            if p.grad is not None
        ]
        flags = torch.stack([loss.isfinite().all(), _finite_norm(gradients, loss.device)])
        bad_loss, bad_norm = _any_process(flags.logical_not())
        self._named, bad_gradient = [], False
        if bad_norm or bad_loss:
            # The squares of large but finite values overflow too, so a bad norm is only a hint.
            self._named = [
                name
                for name, p in self._model.named_parameters()
                if p.grad is not None and not p.grad.isfinite().all()
            ]
            (bad_gradient,) = _any_process(torch.tensor([bool(self._named)], device=loss.device))
        scaler = getattr(wrapper, 'loss_scaler', None)
        if bad_gradient and not bad_loss and scaler is not None and scaler.is_enabled():
            self._overflow = True
            return
        self._bad = bad_loss or bad_gradient
        self._dropping = self._dropping or self._bad
        self.frozen = self._dropping
        if self._dropping:
            wrapper.zero_grad()
            self._buffers.restore()

    def _report(self, runner, data_batch: Any, outputs: dict[str, Any]) -> None:
        """Log what was not finite and in which images, and take it out of the log's averages."""
        losses = [n for n, v in outputs.items() if not torch.as_tensor(v).detach().isfinite().all()]
        for name in losses:
            _forget_last(runner.message_hub.log_scalars.get(f'train/{name}'))
        findings = all_gather_object((losses, _images(data_batch), self._named))
        # A gradient that the processes have averaged is bad on all; a loss tells where it began.
        concerned = [i for i, found in enumerate(findings) if found[0]]
        concerned = concerned or [i for i, found in enumerate(findings) if found[2]]
        for rank in concerned:
            losses, images, parameters = findings[rank]
            parts = [f'losses {_list(losses)}'] if losses else []
            parts += [f'{len(parameters)} gradients ({_list(parameters)})'] if parameters else []
            where = f' on rank {rank}' if len(findings) > 1 else ''
            runner.logger.warning(
                f'Not finite at iteration {runner.iter + 1}{where}: {" and ".join(parts)}; images '
                f'{_list(images, len(images)) or "unknown"}. The step is skipped: weights and '
                f'buffers stay ({self._skipped + self._dropping} in a row, {self.limit} stop the '
                'run).'
            )


class _Buffers:
    """A copy of a model's buffers as they were before an iteration."""

    def __init__(self, model: nn.Module) -> None:
        self._places = [(module, name) for module in model.modules() for name in module._buffers]
        self._buffers: list[Tensor | None] = []
        self._copies: list[Tensor] = []

    @torch.no_grad()
    def save(self) -> None:
        buffers = [module._buffers.get(name) for module, name in self._places]
        same = len(buffers) == len(self._buffers) and all(
            new is old for new, old in zip(buffers, self._buffers, strict=True)
        )
        self._buffers = buffers
        tensors = [buffer for buffer in buffers if buffer is not None]
        if not same:
            self._copies = [tensor.clone() for tensor in tensors]
        elif tensors:
            torch._foreach_copy_(self._copies, tensors)

    @torch.no_grad()
    def restore(self) -> None:
        for (module, name), buffer in zip(self._places, self._buffers, strict=True):
            module._buffers[name] = buffer
        tensors = [buffer for buffer in self._buffers if buffer is not None]
        if tensors:
            torch._foreach_copy_(tensors, self._copies)


def _finite_norm(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Whether the sum of the tensors' norms is finite; True means that each value is finite."""
    groups: dict[tuple, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        groups[tensor.device, tensor.dtype].append(tensor)
    finite = torch.ones((), dtype=torch.bool, device=device)
    for group in groups.values():
        # The norm of order 2 is the one that every torch computes fast.
        total = torch.stack(torch._foreach_norm(group)).sum()
        finite = finite & total.isfinite().to(device)
    return finite


def _any_process(flags: Tensor) -> list[bool]:
    """Return, for each flag, whether it is set in any process."""
    flags = flags.to(torch.uint8)
    all_reduce(flags, 'max')
    return [bool(flag) for flag in flags.tolist()]


def _forget_last(history: Any) -> None:
    """Take a value that is not finite out of the averages that the log shows."""
    if history is None:
        return
    values, counts = history.data
    if len(values) and not math.isfinite(values[-1]):
        values[-1] = counts[-1] = 0


def _images(data: Any) -> list[str]:
    """Name the images of a batch, from what its data samples know."""
    names = []
    for sample in _samples(data):
        meta = sample.metainfo
        name = meta.get('img_path')
        if 'img_id' in meta:
            name = f'{name} (id {meta["img_id"]})' if name else f'id {meta["img_id"]}'
        names += [name] if name else []
    return names


def _samples(data: Any) -> Iterator[BaseDataElement]:
    if isinstance(data, BaseDataElement):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from _samples(value)
    elif isinstance(data, (list, tuple)):
        for value in data:
            yield from _samples(value)


def _list(names: list[str], most: int = _LISTED) -> str:
    left = f', ... {len(names) - most} more' if len(names) > most else ''
    return ', '.join(names[:most]) + left
