"""The error that a tool prints as one line, the process that prints it, and exit codes."""

import os
from pathlib import Path


class UserError(Exception):
    """Something the user can fix: the message names the thing, the place and the remedy."""


class RankError(UserError):
    """A UserError of one process alone: of a run of several, that process prints it."""


def first_process() -> bool:
    """Whether this is the first of a job's processes, which torchrun, Slurm and MPI number."""
    names = ('RANK', 'SLURM_PROCID', 'OMPI_COMM_WORLD_RANK')
    return next((os.environ[name] for name in names if name in os.environ), '0') == '0'


def told_launcher(code: int) -> int:
    """Return the code to end a stopped run with, after telling the launcher's script.

    torchrun and srun take any code but 0 for a failure, and end or restart the others. So where
    tools/supervise.sh has set ``PREEMPTED_FILE``, the code goes into that file and this is 0.
    """
    file = os.environ.get('PREEMPTED_FILE')
    if not file:
        return code
    Path(file).write_text(str(code))
    return 0
