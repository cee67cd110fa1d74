"""Training and resuming; importing it registers hooks, loops and samplers of mmengine."""

from . import (
    dirty_data,
    hooks,
    loops,
    numerical_guard,
    preemption,
    resume,
    saving,
    steady_log,
    workers,
)

__all__ = [
    'dirty_data',
    'hooks',
    'loops',
    'numerical_guard',
    'preemption',
    'resume',
    'saving',
    'steady_log',
    'workers',
]
