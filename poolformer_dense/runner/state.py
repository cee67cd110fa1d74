"""Parts of a run that mmengine's checkpoints lack; `DenseRunner.resumable` is the table of all.

Each part has ``state_dict``, which all ranks call and whose result on the main rank is saved, and
``load_state_dict``, which takes it back. States are tensors and plain data. What differs between
ranks is saved for all of them, under ``ranks``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from mmengine.dist import all_gather_object, gather, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

from ..errors import UserError
from .random_state import load_random_state, random_state


@runtime_checkable
class Stateful(Protocol):
    """What can be resumed."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        epoch: Passes over the data that are complete.
        batch: Batches of the next one that are done.
        validated: Whether a validation that may be due here is done.
        samples_per_step: Samples in one iteration of all ranks.
    """

    epoch: int = 0
    batch: int = 0
    validated: bool = True
    samples_per_step: int = 1

    def move(self, epoch: int, batch: int, validated: bool = True) -> None:
        """Say that the training now stands there."""
        self.epoch, self.batch, self.validated = epoch, batch, validated

    def settle(self) -> None:
        """Say that no validation is due here."""
        self.validated = True

    def count_in(self, samples: int) -> None:
        """Say how many samples an iteration of all ranks has."""
        self.samples_per_step = samples

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a position, in batches of this run's size."""
        done = state['batch'] * state['samples_per_step']
        self.move(state['epoch'], done // self.samples_per_step, state['validated'])


class RandomStates:
    """The random generators of all ranks.

    Args:
        runner: Its seed, iteration and rank seed the generators where the ranks have changed.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._before: dict[str, Any] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Put the generators back after the block; a state from within is that before it."""
        self._before = random_state()
        try:
            yield
        finally:
            load_random_state(self._before)
            self._before = None

    def state_dict(self) -> dict[str, Any]:
        return dict(ranks=all_gather_object(self._before or random_state()))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = own_share(state['ranks'])
        if own:
            load_random_state(own)
            return
        words = [self._runner.seed, self._runner.iter, get_rank()]
        seeds = np.random.SeedSequence(words).generate_state(3)
        random.seed(int(seeds[0]))
        np.random.seed(seeds[1])
        torch.manual_seed(int(seeds[2]))


class AccumulatedGradients:
    """Gradients that wait for an optimizer step, and how many batches have been counted."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def state_dict(self) -> dict[str, Any]:
        counts = {name: wrapper.inner_count for name, wrapper in self._wrappers().items()}
        return dict(counts=counts, ranks=self._gather())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, wrapper in self._wrappers().items():
            count = state['counts'].get(name, wrapper.inner_count)
            if count != wrapper.inner_count:
                iterations = self._runner.train_loop.max_iters
                wrapper.initialize_count_status(self._runner.model, count, iterations)
        own = own_share(state['ranks'] or [])
        if own:
            parameters = dict(bare_model(self._runner).named_parameters())
            for name, gradient in own.items():
                parameters[name].grad = gradient.to(parameters[name])
            self._runner.logger.info('Restored the gradients accumulated before the stop.')

    def _wrappers(self) -> dict[str, OptimWrapper]:
        wrapper = self._runner.optim_wrapper
        return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}

    def _gather(self) -> list[dict[str, Tensor]] | None:
        """The gradients of each rank; complete on the main rank."""
        if all(wrapper.should_update() for wrapper in self._wrappers().values()):
            return None
        parameters = dict(bare_model(self._runner).named_parameters())
        names = all_gather_object([n for n, p in parameters.items() if p.grad is not None])
        gathered: list[dict[str, Tensor]] = [{} for _ in names]
        for name in dict.fromkeys(name for own in names for name in own):
            # One at a time: all of a rank's together may not fit in memory with the model.
            gradient = parameters[name].grad
            gradient = torch.zeros_like(parameters[name]) if gradient is None else gradient
            gradients = gather(gradient.detach().contiguous())
            for rank, gradient in enumerate(gradients):
                if name in names[rank]:
                    gathered[rank][name] = gradient.cpu()
        return gathered


class RankBuffers:
    """Buffers where the ranks' differ, as plain batch norm's do; mmengine saves those of one."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def state_dict(self) -> dict[str, Any]:
        if get_world_size() == 1:
            return dict(ranks=None)
        own = {name: buffer.detach().cpu() for name, buffer in self._buffers().items()}
        total = hashlib.sha256()
        for buffer in own.values():
            total.update(buffer.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        same = len(set(all_gather_object(total.hexdigest()))) == 1
        return dict(ranks=None if same else all_gather_object(own))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        own = own_share(state['ranks'] or [])
        if own:
            with torch.no_grad():
                for name, buffer in self._buffers().items():
                    buffer.copy_(own[name])

    def _buffers(self) -> dict[str, Tensor]:
        averages = [hook.ema_model for hook in self._runner.hooks if isinstance(hook, EMAHook)]
        modules = dict(model=bare_model(self._runner))
        modules |= {f'ema{number}': average for number, average in enumerate(averages)}
        return {
            f'{owner}.{name}': buffer
            for owner, module in modules.items()
            for name, buffer in module.named_buffers()
        }


def own_share(shares: Sequence[Any]) -> Any:
    """This rank's of what was saved for each; None if there were more or fewer ranks."""
    return shares[get_rank()] if len(shares) == get_world_size() else None


def require_dense_runner(runner: Runner, hook: Hook) -> None:
    """Refuse a Runner that lacks what a hook needs.

    Raises:
        UserError: It is not a `DenseRunner`.
    """
    if not hasattr(runner, 'saving_together'):
        raise UserError(
            f'{type(hook).__name__} needs a DenseRunner, and this is a {type(runner).__name__}: '
            "set runner_type='DenseRunner' in the config, or take the hook out"
        )


def bare_model(runner: Runner) -> nn.Module:
    """The model without the wrappers of a distributed run and of test-time augmentation."""
    model = runner.model
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def upgrade(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's state of the run, also one that was saved before 2026-11-26.

    Returns:
        States by the names of `DenseRunner.resumable`; nothing if another program saved it.
    """
    state = checkpoint.get('run_state') or {}
    if 'samples_per_step' not in state:
        return dict(state)
    ranks = state['ranks']
    parts = dict(
        position=state['position'] | dict(samples_per_step=state['samples_per_step']),
        sampler=dict(ranks=[rank['seeds'] for rank in ranks]),
        accumulation=dict(counts=state['counts'], ranks=[rank['gradients'] for rank in ranks]),
        buffers=dict(ranks=[rank['buffers'] for rank in ranks]),
        random=dict(ranks=[rank['random'] for rank in ranks]),
    )
    hooks = dict(
        ResumableEarlyStoppingHook=state['hooks'].get('EarlyStoppingHook'),
        NumericalGuardHook=checkpoint.get('numerical_guard'),
    )
    return parts | {name: saved for name, saved in hooks.items() if saved}
