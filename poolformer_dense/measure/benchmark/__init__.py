"""Timing the backbones beside other implementations of the same function, within one run."""

from .compete import compete
from .peers import PEERS
from .tables import as_dict, describe_environment, growth_table, plot, ratio_table, table
from .task import TASKS, TOLERANCE, Row, Workload, select_device
from .whole import compare_steps, stage_table

__all__ = [
    'PEERS',
    'TASKS',
    'TOLERANCE',
    'Row',
    'Workload',
    'as_dict',
    'compare_steps',
    'compete',
    'describe_environment',
    'growth_table',
    'plot',
    'ratio_table',
    'select_device',
    'stage_table',
    'table',
]
