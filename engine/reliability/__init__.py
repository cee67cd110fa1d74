"""What makes a run survive kills, full disks, bad data and bad gradients.

Importing it registers the hooks, loops and samplers in mmengine's registries.
"""

from . import checkpoint, dirty_data, log, loops, numerical_guard, preemption, resume, workers

__all__ = [
    'checkpoint',
    'dirty_data',
    'log',
    'loops',
    'numerical_guard',
    'preemption',
    'resume',
    'workers',
]
