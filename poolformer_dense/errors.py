"""The error that a tool prints as one line, the process that prints it, and exit codes."""

import os
import sys


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
    tools/supervise.sh has set ``PREEMPTED_FILE``, the code goes into that file and this is 0. If it
    can't be written there, a line says so, and the code is returned after all.

    Of srun's processes the first alone writes: others may run where the file is not seen.
    """
    file = os.environ.get('PREEMPTED_FILE')
    if not file:
        return code
    if 'TORCHELASTIC_RUN_ID' not in os.environ and not first_process():
        return 0
    try:
        # In place: what the script has put there holds the room that a full disk does not have.
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f'{code:03}\n'.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        print(
            f'error: {file} can not be written ({error.strerror}), so the launcher may take exit '
            f'code {code} for a failure',
            file=sys.stderr,
        )
        return code
    return 0
