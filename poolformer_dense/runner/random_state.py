"""The random generators of python, numpy and torch, as one state."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The states of this process's random generators, as tensors and plain data."""
    version, words, gauss = random.getstate()
    _, keys, place, has_gauss, cached = cast(tuple[Any, ...], np.random.get_state())
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
    """Set this process's random generators to what `random_state` returned."""
    python, words = state['python'], state['numpy']
    random.setstate((python['version'], tuple(python['words'].tolist()), python['gauss']))
    keys = words['words'].cpu().numpy().astype(np.uint32)
    np.random.set_state(('MT19937', keys, words['place'], words['has_gauss'], words['gauss']))
    torch.set_rng_state(state['torch'].cpu())
    if 'cuda' in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state['cuda'].cpu())


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the random generators back as they were before the block."""
    before = random_state()
    try:
        yield
    finally:
        load_random_state(before)


def seed_cpu(words: Sequence[int]) -> None:
    """Seed the CPU generators of python, numpy and torch from any number of words."""
    # torch.manual_seed would seed the GPU too.
    states = np.random.SeedSequence(words).generate_state(3, np.uint64)
    random.seed(int(states[0]))
    np.random.seed(states[1:2].view(np.uint32))
    torch.default_generator.manual_seed(int(states[2]))


@contextmanager
def seeded(words: Sequence[int]) -> Iterator[None]:
    """Within the block the CPU generators depend on the words alone; then they are put back."""
    before = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed_cpu(words)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.default_generator.set_state(before[2])
