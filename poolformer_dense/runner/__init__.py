"""Training, evaluating and resuming; importing it registers `DenseRunner` and its hooks."""

from .label_writer import DumpLabelMaps
from .process import run_process
from .runner import DenseRunner, build_runner

__all__ = ['DenseRunner', 'DumpLabelMaps', 'build_runner', 'run_process']
