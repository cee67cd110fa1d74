"""Our hooks in the places of mmengine's that lose something in a stopped run."""

from __future__ import annotations

import logging

from mmengine.hooks import CheckpointHook, EarlyStoppingHook, EMAHook, Hook, LoggerHook
from mmengine.registry import HOOKS

from ..console import ASIDE
from .checkpoint_hook import AtomicCheckpointHook
from .hooks import ResumableEarlyStoppingHook, SteadyLoggerHook
from .numerical_guard import GuardedEMAHook

# Ours decides whether mmengine's method is called, or a subclass's own.
_AROUND: dict[type[Hook], type[Hook]] = {
    EMAHook: GuardedEMAHook,
    LoggerHook: SteadyLoggerHook,
}
# Ours has other methods than mmengine's; those of a subclass come before ours.
_INSTEAD: dict[type[Hook], type[Hook]] = {
    CheckpointHook: AtomicCheckpointHook,
    EarlyStoppingHook: ResumableEarlyStoppingHook,
}


def substitute(hook: Hook | dict, logger: logging.Logger) -> Hook | dict:
    """Return a hook's config with our class in place of mmengine's.

    A subclass of mmengine's is combined with ours. A hook that is an object stays as it is.

    Args:
        hook: As for ``Runner.register_hook``.
        logger: For what takes whose place.
    """
    kind = hook.get('type') if isinstance(hook, dict) else type(hook)
    kind = HOOKS.get(kind) if isinstance(kind, str) else kind
    for theirs, ours in (_AROUND | _INSTEAD).items():
        if isinstance(kind, type) and issubclass(kind, theirs) and not issubclass(kind, ours):
            break
    else:
        return hook
    if not isinstance(hook, dict):
        logger.warning(
            f'{kind.__name__} is given as an object: {ours.__name__} can not take its place; give '
            'it as a dict with its type'
        )
        return hook
    if kind is theirs:
        logger.info(f'{kind.__name__}: {ours.__name__} takes its place.', extra=ASIDE)
        return {**hook, 'type': ours}
    logger.info(f'{kind.__name__}: it is combined with {ours.__name__}.')
    bases = (ours, kind) if theirs in _AROUND else (kind, ours)
    return {**hook, 'type': type(kind.__name__, bases, {'__module__': kind.__module__})}
