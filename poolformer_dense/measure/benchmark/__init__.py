"""Timing whole models and backbones beside others that do the same, in turns within one run."""

from .busy import busy_processes
from .compete import compete
from .format_times import compare_formats, format_table
from .peers import PEERS
from .tables import as_dict, describe_environment, ratio_table, table
from .task import TASKS, TOLERANCE, Row, Workload, select_device
from .whole import build_contestants, stage_table, take_turns

__all__ = [
    'PEERS',
    'TASKS',
    'TOLERANCE',
    'Row',
    'Workload',
    'as_dict',
    'build_contestants',
    'busy_processes',
    'compare_formats',
    'compete',
    'describe_environment',
    'format_table',
    'ratio_table',
    'select_device',
    'stage_table',
    'table',
    'take_turns',
]
