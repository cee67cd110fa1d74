"""What is measured on a machine with a GPU, in stages; `tools/gpu_check.sh` runs them."""

from .report import report
from .result import Setting, StageResult
from .stages import STAGES

__all__ = ['STAGES', 'Setting', 'StageResult', 'report']
