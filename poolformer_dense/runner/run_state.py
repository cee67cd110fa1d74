"""What a run needs, beside what mmengine saves, to go on as if it had never stopped."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from mmengine.dist import all_gather_object, gather, get_rank, get_world_size
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import Tensor, nn

# What mmengine's hooks remember from one validation to a later one and don't save. A hook of one's
# own has before_save_checkpoint and after_load_checkpoint for that.
_REMEMBERED = {EarlyStoppingHook: ('wait_count', 'best_score')}


@dataclass
class Position:
    """Where a training stands.

    Attributes:
        epoch: Passes over the data that are complete.
        batch: Batches of the next one that are done.
        validated: Whether the validation that may be due here is behind.
    """

    epoch: int = 0
    batch: int = 0
    validated: bool = True


def collect(runner: Runner) -> dict[str, Any] | None:
    """Return the state of all ranks; tensors and plain data, for ``checkpoint['run_state']``.

    All ranks must call it: after an iteration, after an epoch or in a validation. It changes
    nothing, random states included.

    Returns:
        None if the training's loop is not one of `poolformer_dense.runner.loops`.
    """
    loop = runner.train_loop
    position = getattr(loop, 'position', None)
    if position is None:
        return None
    own = dict(random=loop.random_before_validation or random_state(), seeds=loop.seeds())
    ranks = all_gather_object(own)
    gradients = _gather_gradients(runner)
    buffers = _gather_buffers(runner)
    for rank, state in enumerate(ranks):
        state['gradients'] = gradients[rank] if gradients else None
        state['buffers'] = buffers[rank] if buffers else None
    return dict(
        position=asdict(position),
        samples_per_step=samples_per_step(runner),
        counts={name: wrapper._inner_count for name, wrapper in _wrappers(runner).items()},
        hooks=_hook_states(runner),
        ranks=ranks,
    )


def restore(runner: Runner, state: dict[str, Any]) -> None:
    """Bring back what `collect` returned, but for the position, which is the loop's.

    With another number of processes, random states start afresh and gradients that wait for an
    optimizer step are lost; one line says so.
    """
    for name, wrapper in _wrappers(runner).items():
        wrapper._inner_count = state['counts'].get(name, wrapper._inner_count)
    for hook in runner.hooks:
        vars(hook).update(state['hooks'].get(type(hook).__name__, {}))
    ranks = state['ranks']
    if len(ranks) != get_world_size():
        runner.logger.warning(
            f'The checkpoint is of {len(ranks)} processes, this run has {get_world_size()}: the '
            'random states start afresh, so the run goes on, but not exactly as it would have.'
        )
        runner.train_loop.load_seeds(ranks[0]['seeds'])
        _seed_afresh([runner.seed, runner.iter, get_rank()])
        return
    own = ranks[get_rank()]
    runner.train_loop.load_seeds(own['seeds'])
    if own['gradients']:
        parameters = dict(_model(runner).named_parameters())
        for name, gradient in own['gradients'].items():
            parameters[name].grad = gradient.to(parameters[name])
        runner.logger.info('The gradients accumulated before the stop are back: none is lost.')
    if own['buffers']:
        with torch.no_grad():
            for name, buffer in _buffers(runner).items():
                buffer.copy_(own['buffers'][name])
    load_random_state(own['random'])


def samples_per_step(runner: Runner) -> int:
    """The number of samples in one iteration of all ranks."""
    size = getattr(runner.train_loop.dataloader.batch_sampler, 'batch_size', 1)
    return get_world_size() * (sum(size) if isinstance(size, (list, tuple)) else size)


def random_state() -> dict[str, Any]:
    """The states of the random generators of this process, as tensors and plain data."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = np.random.get_state()
    state = dict(
        python=dict(version=version, words=torch.tensor(words), gauss=gauss),
        numpy=dict(
            words=torch.from_numpy(keys.astype(np.int64)),
            place=place,
            has_gauss=has_gauss,
            gauss=cached,
        ),
        torch=torch.get_rng_state(),
    )
    if torch.cuda.is_available():
        state['cuda'] = torch.cuda.get_rng_state()
    return state


def load_random_state(state: dict[str, Any]) -> None:
    """Set the random generators of this process to what `random_state` returned."""
    ours = state['python']
    random.setstate((ours['version'], tuple(ours['words'].tolist()), ours['gauss']))
    ours = state['numpy']
    words = ours['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', words, ours['place'], ours['has_gauss'], ours['gauss']))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Leave the random generators as they were before, whatever draws from them within."""
    before = random_state()
    try:
        yield
    finally:
        load_random_state(before)


def _seed_afresh(words: list[int]) -> None:
    seeds = np.random.SeedSequence(words).generate_state(3)
    random.seed(int(seeds[0]))
    np.random.seed(seeds[1])
    torch.manual_seed(int(seeds[2]))


def _model(runner: Runner) -> nn.Module:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _wrappers(runner: Runner) -> dict[str, OptimWrapper]:
    wrapper = runner.optim_wrapper
    return dict(wrapper.items()) if isinstance(wrapper, OptimWrapperDict) else {'': wrapper}


def _gather_gradients(runner: Runner) -> list[dict[str, Tensor]] | None:
    """The gradients of each rank that wait for an optimizer step; complete on the main rank."""
    if all(wrapper.should_update() for wrapper in _wrappers(runner).values()):
        return None
    parameters = dict(_model(runner).named_parameters())
    names = all_gather_object([n for n, p in parameters.items() if p.grad is not None])
    gathered: list[dict[str, Tensor]] = [{} for _ in names]
    for name in dict.fromkeys(name for own in names for name in own):
        # One at a time: all of a rank's together may not fit beside the model.
        gradient = parameters[name].grad
        gradient = torch.zeros_like(parameters[name]) if gradient is None else gradient
        gradients = gather(gradient.detach().contiguous())
        for rank, gradient in enumerate(gradients):
            if name in names[rank]:
                gathered[rank][name] = gradient.cpu()
    return gathered


def _buffers(runner: Runner) -> dict[str, Tensor]:
    modules = dict(model=_model(runner))
    modules |= {
        f'ema{number}': hook.ema_model
        for number, hook in enumerate(h for h in runner.hooks if isinstance(h, EMAHook))
    }
    return {
        f'{owner}.{name}': buffer
        for owner, module in modules.items()
        for name, buffer in module.named_buffers()
    }


def _gather_buffers(runner: Runner) -> list[dict[str, Tensor]] | None:
    """The buffers of each rank if they differ, as plain batch norm's do; mmengine saves one's."""
    if get_world_size() == 1:
        return None
    own = {name: buffer.detach().cpu() for name, buffer in _buffers(runner).items()}
    total = hashlib.sha256()
    for buffer in own.values():
        total.update(buffer.contiguous().view(-1).view(torch.uint8).numpy())
    if len(set(all_gather_object(total.hexdigest()))) == 1:
        return None
    return all_gather_object(own)


def _hook_states(runner: Runner) -> dict[str, dict[str, Any]]:
    return {
        type(hook).__name__: {key: float(getattr(hook, key)) for key in _REMEMBERED[type(hook)]}
        for hook in runner.hooks
        if type(hook) in _REMEMBERED
    }
