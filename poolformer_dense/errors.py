"""The error that a tool prints as one line, and the process that prints it."""

import os


class UserError(Exception):
    """Something the user can fix: the message names the thing, the place and the remedy."""


class RankError(UserError):
    """A UserError of one process alone: of a run of several, that process prints it."""


def first_process() -> bool:
    """Whether this is the first of a job's processes, which torchrun and Slurm number."""
    return os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0')) == '0'
