"""How the processes of a run find each other and part, with GPUs and without."""

from __future__ import annotations

import atexit
import math
import os
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import init_dist, is_distributed
from torch.distributed import DistError, TCPStore

from ..errors import RankError, UserError
from ..ports import require_free_port
from ..terminal import tell
from .board import Board, BoardClient
from .waiting import GIVE_UP_AFTER, REPORT_AFTER, Watch, enter, start_watch, stop_watch

_STARTERS = (
    ('pytorch', 'RANK', 'is for torchrun: start with tools/dist_train.sh'),
    ('slurm', 'SLURM_PROCID', "is for Slurm's srun: start with tools/slurm_train.sh"),
)
# The backend's own limit is beyond ours, which knows who is only busy.
_BEYOND = 7 * 24 * 3600.0  # seconds
_PARTING = 10.0  # seconds for the backend to close its connections
_PATIENCE = 2.0  # seconds for one answer


def join_processes(launcher: str, env_cfg: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Check the launcher and begin to watch; open a gloo group where mmengine wants a GPU for it.

    The group is closed, by whoever opens it, when the process ends.

    Args:
        launcher: none, pytorch, slurm or mpi.
        env_cfg: Of the config. ``dist_cfg.timeout``: seconds after which a wait for other processes
            ends the run. ``report_after``: seconds after which one is reported.

    Returns:
        What mmengine should take for env_cfg.

    Raises:
        UserError: The launcher does not fit: torchrun's without torchrun, Slurm's without srun,
            MPI's without GPUs. Or a setting is no number of seconds, or the port is in use.
    """
    env = dict(env_cfg or {})
    for name, variable, remedy in _STARTERS:
        if launcher == name and variable not in os.environ:
            raise UserError(f'--launcher {launcher} {remedy}')
    if launcher == 'none' or is_distributed():
        return env
    if launcher == 'mpi' and not torch.cuda.is_available():
        raise UserError(
            '--launcher mpi needs GPUs and torch sees none; make doctor says why. '
            'CPU processes are started by tools/dist_train.sh'
        )
    options = dict(env.get('dist_cfg') or {})
    if launcher == 'slurm':
        _adopt_slurm_variables(options.get('port'))
    elif launcher == 'mpi':
        _adopt_mpi_variables()
    give_up_after = _seconds(options.get('timeout', GIVE_UP_AFTER), 'dist_cfg.timeout')
    report_after = _seconds(env.pop('report_after', REPORT_AFTER), 'report_after')
    store = _watch_others(report_after, give_up_after)
    _part_at_exit(store)
    limit = give_up_after + _BEYOND
    if not torch.cuda.is_available():
        # mmengine's own launchers call torch.cuda.set_device whatever the backend.
        torch.distributed.init_process_group('gloo', timeout=timedelta(seconds=limit))
    return env | dict(dist_cfg=options | dict(timeout=limit))


def join_run(cfg: Config) -> None:
    """Join the other processes before there is a Runner: what is checked then, all hear of.

    Args:
        cfg: Its launcher and env_cfg count.

    Raises:
        UserError: As from `join_processes`.
    """
    env = join_processes(cfg.get('launcher', 'none'), cfg.get('env_cfg'))
    if cfg.get('launcher', 'none') != 'none' and not is_distributed():
        init_dist(cfg.launcher, **env['dist_cfg'])
    enter('the checks before the start', busy=True)


def _seconds(value: Any, key: str) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise UserError(f'env_cfg.{key} is {value!r}: it must be a number of seconds, above 0')


def _adopt_slurm_variables(port: int | None) -> None:
    """Set torch.distributed's variables from Slurm's; the first node of the job is the master."""
    os.environ['RANK'] = os.environ['SLURM_PROCID']
    if 'SLURM_LOCALID' in os.environ:
        os.environ['LOCAL_RANK'] = os.environ['SLURM_LOCALID']
    os.environ['WORLD_SIZE'] = os.environ['SLURM_NTASKS']
    os.environ['MASTER_PORT'] = str(port or os.environ.get('MASTER_PORT', '29500'))
    if 'MASTER_ADDR' not in os.environ:
        command = ['scontrol', 'show', 'hostname', os.environ['SLURM_NODELIST']]
        nodes = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        os.environ['MASTER_ADDR'] = nodes.split()[0]


def _adopt_mpi_variables() -> None:
    os.environ['RANK'] = os.environ['OMPI_COMM_WORLD_RANK']
    os.environ['WORLD_SIZE'] = os.environ['OMPI_COMM_WORLD_SIZE']
    os.environ.setdefault('MASTER_PORT', '29500')
    if 'MASTER_ADDR' not in os.environ:
        raise UserError('--launcher mpi: set MASTER_ADDR to the address of the first node')


def _watch_others(report_after: float, give_up_after: float) -> TCPStore | None:
    """Begin to watch the other ranks; return torch's store, if this process holds it."""
    rank, size = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    host, port = os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT'])
    # Under torchrun its agent holds the store, unless the nodes can be restarted.
    held = rank == 0 and os.environ.get('TORCHELASTIC_USE_AGENT_STORE') != 'True'
    if held:
        require_free_port(host, port)
    elif rank or size > 1:
        meeting = _Meeting(rank, host, port, report_after, give_up_after)
    store = None
    if held:
        # torch opens it a second time, for the group: in one process they are one.
        store = TCPStore(host, port, None, True, wait_for_workers=False, multi_tenant=True)
    if size == 1:
        return store
    board: Board | BoardClient
    if rank == 0:
        board = Board()
        (store or meeting.store()).set(_key(), board.contact)
    else:
        board = BoardClient(host, meeting.contact(), min(_PATIENCE, report_after / 4))
    start_watch(Watch(rank, size, host, board, report_after, give_up_after))
    return store


def _key() -> str:
    """Where this run's board is named in torch's store, which may turn out to be another run's."""
    names = ('TORCHELASTIC_RUN_ID', 'SLURM_JOB_ID', 'SLURM_STEP_ID')
    return '/'.join(['poolformer_dense/board', *(os.environ.get(name, '') for name in names)])


class _Meeting:
    """Finds rank 0 by torch's store, and says so when that takes long."""

    def __init__(
        self, rank: int, host: str, port: int, report_after: float, give_up_after: float
    ) -> None:
        self._who = f'rank {rank} on {socket.gethostname()}'
        self._host, self._port = host, port
        self._began, self._next = time.monotonic(), report_after
        self._give_up_after = give_up_after

    def store(self) -> TCPStore:
        """Connect to the store once somebody listens; torch logs what it tries in vain."""
        while True:
            pause = min(_PATIENCE, self._next)
            try:
                socket.create_connection((self._host, self._port), pause).close()
                limit = timedelta(seconds=max(pause, 1))
                return TCPStore(self._host, self._port, None, False, limit, wait_for_workers=False)
            except OSError as error:
                self._wait_longer(f'to answer ({error.strerror or error})')
            except DistError as error:
                self._wait_longer(f"to answer as torch's store ({str(error).splitlines()[0]})")
            time.sleep(min(0.2, pause))

    def contact(self) -> str:
        """How to reach the board of rank 0."""
        store = self.store()
        while True:
            try:
                pause = min(_PATIENCE, self._next)
                store.wait([_key()], timedelta(seconds=pause))
                return store.get(_key()).decode()
            except DistError:
                self._wait_longer('to begin; or is that the port of another run?')

    def _wait_longer(self, what: str) -> None:
        waited = time.monotonic() - self._began
        place = f'rank 0 at {self._host}, port {self._port}, {what}'
        if waited >= self._give_up_after:
            raise RankError(
                f'{self._who} has waited for {waited:.0f} s for {place}. It gives up after '
                f'env_cfg.dist_cfg.timeout={self._give_up_after:g}'
            )
        if waited >= self._next:
            self._next = 2 * waited
            tell(f'{self._who} has been waiting for {waited:.0f} s for {place}')


def _part_at_exit(store: TCPStore | None) -> None:
    """Close the group when the process ends, and then what rank 0 holds for the others."""
    told, done = threading.Event(), threading.Event()

    def close_group() -> None:
        told.wait()
        with suppress(Exception):  # the others have gone
            if is_distributed():
                torch.distributed.destroy_process_group()
        done.set()

    def part(pid: int) -> None:
        if os.getpid() != pid:
            return
        told.set()
        # Where a collective is under way it would wait for that.
        done.wait(_PARTING)
        stop_watch()
        kept.clear()

    kept = [store]
    # At an exit no thread can be started.
    threading.Thread(target=close_group, name='parting', daemon=True).start()
    atexit.register(part, os.getpid())
