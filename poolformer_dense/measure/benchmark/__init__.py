"""Timing whole models and backbones beside others that do the same, in turns within one run.

`whole` and `format_times` need a toolbox and are imported by their names: the peers' environment,
where backbones are timed, has none.
"""

from .busy import busy_processes
from .compete import compete
from .peers import PEERS
from .tables import as_dict, describe_environment, ratio_table, table
from .task import TASKS, TOLERANCE, Row, Workload, select_device

__all__ = [
    'PEERS',
    'TASKS',
    'TOLERANCE',
    'Row',
    'Workload',
    'as_dict',
    'busy_processes',
    'compete',
    'describe_environment',
    'ratio_table',
    'select_device',
    'table',
]
