"""Checkpoints from before all that can be resumed stood in one table."""

from __future__ import annotations

from typing import Any

import torch

from poolformer_dense.runner.state import upgrade
from tests.poolformer_dense.runner import exactness, tiny


def _downgraded(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Give a checkpoint of one process the layout that was written until 2026-11-26."""
    state = checkpoint['run_state']
    position = dict(state['position'])
    gradients = state['accumulation']['ranks']
    rank = dict(
        random=state['random']['ranks'][0],
        seeds=state['sampler']['ranks'][0],
        gradients=gradients[0] if gradients else None,
        buffers=None,
    )
    stopping = state['ResumableEarlyStoppingHook']
    run_state = dict(
        samples_per_step=position.pop('samples_per_step'),
        position=position,
        counts=state['accumulation']['counts'],
        hooks=dict(EarlyStoppingHook={k: float(stopping[k]) for k in ('wait_count', 'best_score')}),
        ranks=[rank],
    )
    return checkpoint | dict(run_state=run_state, numerical_guard=state['NumericalGuardHook'])


def test_they_resume_exactly(runs):
    stopping = dict(type='EarlyStoppingHook', monitor='tiny/accuracy', patience=9)
    options = dict(loop='epoch', accumulate=4, ema=True, steps=12)
    keeper = dict(type='KeepEachStep', folder=str(runs / 'kept'))
    hooks = [stopping, keeper]
    whole = tiny.fork(runs / 'a', exactness.train, runs / 'whole', hooks=hooks, **options).result()
    # In the second epoch, within a group of accumulated batches.
    checkpoint = torch.load(runs / 'kept/7.pth', weights_only=False)
    assert checkpoint['run_state']['accumulation']['ranks'][0]
    old = _downgraded(checkpoint)
    state = upgrade(old)
    assert state['ResumableEarlyStoppingHook']['best_score'] > 0
    for name in ('position', 'sampler', 'accumulation', 'random', 'NumericalGuardHook'):
        assert tiny.checksum(state[name]) == tiny.checksum(checkpoint['run_state'][name]), name
    torch.save(old, runs / 'old.pth')
    options |= dict(resume=True, load_from=runs / 'old.pth')
    resumed = tiny.fork(
        runs / 'b', exactness.train, runs / 'resumed', hooks=[stopping], **options
    ).result()
    assert resumed == whole
