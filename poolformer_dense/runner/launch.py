"""How the processes of a run find each other, with GPUs and without."""

from __future__ import annotations

import os
import subprocess

import torch
from mmengine.dist import is_distributed

from ..errors import UserError

_STARTERS = (
    ('pytorch', 'RANK', 'is for torchrun: start with tools/dist_train.sh'),
    ('slurm', 'SLURM_PROCID', "is for Slurm's srun: start with tools/slurm_train.sh"),
)


def join_processes(launcher: str) -> None:
    """Check the launcher; without a GPU, open a gloo group where mmengine would select a GPU.

    Args:
        launcher: none, pytorch, slurm or mpi.

    Raises:
        UserError: The launcher does not fit: torchrun's without torchrun, Slurm's without srun,
            MPI's without GPUs.
    """
    for name, variable, remedy in _STARTERS:
        if launcher == name and variable not in os.environ:
            raise UserError(f'--launcher {launcher} {remedy}')
    if torch.cuda.is_available() or launcher == 'none':
        return
    if launcher == 'mpi':
        raise UserError(
            '--launcher mpi needs GPUs and torch sees none; make doctor says why. '
            'CPU processes are started by tools/dist_train.sh'
        )
    if not is_distributed():
        if launcher == 'slurm':
            _adopt_slurm_variables()
        # mmengine's own launchers call torch.cuda.set_device whatever the backend.
        torch.distributed.init_process_group('gloo')


def _adopt_slurm_variables() -> None:
    """Set torch.distributed's variables from Slurm's; the first node of the job is the master."""
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    os.environ['LOCAL_RANK'] = os.environ['SLURM_LOCALID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        os.environ['MASTER_ADDR'] = nodes.split()[0]
