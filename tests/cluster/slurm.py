"""A Slurm of its own on hosts of a test: one controller, a daemon on every other host."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from tests.cluster.hosts import Host, wait_until

PACKAGES = dict(slurmctld='slurmctld', slurmd='slurmd', sbatch='slurm-client', munged='munge')
# A job that was requeued may start again after `cred_expire`, by default two minutes.
CONFIG = """
ClusterName=test
SlurmctldHost={controller}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SlurmdParameters=config_overrides
ReturnToService=0
KillWait=60
MinJobAge=3600
SchedulerParameters=sched_interval=2
MpiDefault=none
GresTypes=gpu
NodeName={nodes} CPUs=64 RealMemory=1000000 Gres=gpu:8 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE
"""


class Slurm:
    """A cluster's commands.

    Attributes:
        controller: Where jobs are submitted.
        nodes: Where they run.
    """

    def __init__(self, hosts: Sequence[Host], folder: Path) -> None:
        self.controller, *self.nodes = hosts
        self.folder = folder
        self.environment = {'SLURM_CONF': str(folder / 'slurm.conf')}

    def start(self) -> None:
        """Start the daemons; they end with their hosts.

        Raises:
            AssertionError: The nodes did not become idle.
        """
        self.folder.mkdir()
        names = ','.join(node.name for node in self.nodes)
        text = CONFIG.format(controller=self.controller.name, folder=self.folder, nodes=names)
        (self.folder / 'slurm.conf').write_text(text)
        for number in range(8):
            os.mknod(
                self.folder / f'gpu{number}', stat.S_IFCHR | 0o600, os.stat('/dev/null').st_rdev
            )
        (self.folder / 'gres.conf').write_text(f'Name=gpu File={self.folder}/gpu[0-7]\n')
        (self.folder / 'state').mkdir()
        key = self.folder / 'munge.key'
        key.write_bytes(b'drawn by nobody, used by one test' * 4)
        key.chmod(0o400)
        kinds = ('socket', 'pid-file', 'log-file', 'seed-file')
        files = [f'--{kind}={self.folder}/munge.{kind}' for kind in kinds]
        # Without --force it refuses the folders of a test, which others can't enter.
        self._daemon(
            self.controller, 'munged', '--foreground', '--force', f'--key-file={key}', *files
        )
        wait_until((self.folder / 'munge.socket').exists, 'munged')
        self._daemon(self.controller, 'slurmctld', '-D')
        for node in self.nodes:
            self.start_node(node)
        wait_until(self._idle, 'idle nodes', interval=0.3)

    def start_node(self, node: Host) -> None:
        """Start a node's daemon."""
        self._daemon(node, 'slurmd', '-D', '-N', node.name)

    def stop(self) -> None:
        """End the daemons."""
        self.run('scontrol', 'shutdown')
        self.run('munged', '--stop', f'--socket={self.folder}/munge.socket')

    def busy(self) -> bool:
        """Whether a node still runs something of a job."""
        return self._states() != {'idle'}

    def _states(self) -> set[str]:
        return set(self.run('sinfo', '--noheader', '--Node', '--format=%T').split())

    def _daemon(self, host: Host, *command: object) -> None:
        host.start(*command, **self.environment)

    def _idle(self) -> bool:
        with contextlib.suppress(AssertionError):  # the controller does not answer yet
            return not self.busy()
        return False

    def run(self, *command: object, **variables: object) -> str:
        """Run one of Slurm's commands on the controller; return what it prints.

        Raises:
            AssertionError: It failed.
        """
        return self.controller.run(*command, **self.environment | variables)

    def show(self, number: int) -> dict[str, str]:
        """What Slurm knows of a job: JobState, Restarts, ExitCode and more."""
        words = self.run('scontrol', 'show', 'job', number).split()
        return dict(word.split('=', 1) for word in words if '=' in word)
