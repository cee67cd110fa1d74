"""The batch script of the documentation, under a real Slurm."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from tests.cluster import hosts as machines
from tests.cluster import slurm as slurm_
from tests.cluster.hosts import ROOT, wait_until
from tests.cluster.slurm import Slurm
from tests.cluster.training import GATE, Detector, outcome

ENDS = {'COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL'}


@pytest.fixture
def slurm(_namespaces, tmp_path):
    """A Slurm of two nodes, on which nothing may be left at the end of a test."""
    if reason := machines.missing(slurm_.PACKAGES):
        pytest.skip(reason)
    with machines.cluster(tmp_path, ['head', 'n1', 'n2']) as hosts:
        slurm = Slurm(hosts, tmp_path / 'slurm')
        try:
            slurm.start()
            yield slurm
        finally:
            for log in (*tmp_path.glob('slurm/*.log'), *tmp_path.glob('*.out')):
                print(f'--- {log.name}\n{log.read_text(errors="replace")[-5000:]}')
        slurm.stop()
        machines.nothing_left(hosts)


def batch_script():
    """The batch script of docs/clusters.md, as it stands there."""
    page = (ROOT / 'docs/clusters.md').read_text()
    [script] = re.findall(r'```\w*\n(#!/bin/bash\n#SBATCH.*?)```', page, re.DOTALL)
    return script


class Batch:
    """A training that is submitted as a job.

    Attributes:
        number: Slurm's.
        detector: Its config.
    """

    def __init__(self, slurm, folder, shapes, *flags, gate=False):
        self.slurm, self.folder = slurm, folder
        self.detector = Detector(folder / 'config', shapes, gate=gate)
        self.script = folder / 'job.sh'
        self.script.write_text(batch_script())
        (folder / 'tools').symlink_to(ROOT / 'tools')
        self.submit(*flags)

    def submit(self, *flags):
        """Submit the script, with what is of this cluster and not of the page's."""
        resources = [
            '--nodes=2', '--gpus-per-node=1', '--ntasks-per-node=1', '--cpus-per-task=1',
            '--time=30', '--job-name=train', f'--chdir={self.folder}',
        ]  # fmt: skip
        variables = dict(
            CONFIG=self.detector.path, WORK_DIR=self.folder / 'run',
            OMP_NUM_THREADS=1, VIRTUAL_ENV=sys.prefix,
            PATH=f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        )  # fmt: skip
        command = ['sbatch', '--parsable', '--output=%j.out', *resources, *flags, self.script]
        self.number = int(self.slurm.run(*command, **variables))

    def shown(self, key):
        """What Slurm says of the job, e.g. its JobState or Restarts."""
        return self.slurm.show(self.number)[key]

    def wait_for_gate(self):
        """Wait until both ranks are at the gate."""

        def arrived():
            assert self.shown('JobState') in ('PENDING', 'RUNNING')
            return self.detector.arrived

        wait_until(arrived, 'all ranks at the gate', interval=0.3)

    def wait_for(self, state):
        """Wait until the job is in a state, which must be the end if any is."""

        def reached():
            now = self.shown('JobState')
            assert now == state or now not in ENDS, now
            return now == state

        wait_until(reached, state, interval=0.5)


def test_a_job(slurm, shapes, tmp_path, undisturbed):
    job = Batch(slurm, tmp_path, shapes)
    job.wait_for('COMPLETED')
    assert job.shown('Restarts') == '0'
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_time_limit(slurm, shapes, tmp_path, undisturbed):
    # Slurm looks at the time every 30 s: the signal comes 30 to 60 s before the end.
    job = Batch(slurm, tmp_path, shapes, '--time=2', '--signal=USR1@30', gate=True)
    job.wait_for_gate()  # which the signal opens
    job.wait_for('COMPLETED')
    assert job.shown('Restarts') == '1'
    said = (tmp_path / f'{job.number}.out').read_text()
    assert f'SIGUSR1: the run ends after iteration {GATE + 1}; a checkpoint was saved' in said
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_requeue(slurm, shapes, tmp_path, undisturbed):
    job = Batch(slurm, tmp_path, shapes, gate=True)
    job.wait_for_gate()
    slurm.run('scontrol', 'requeue', job.number)
    job.wait_for('COMPLETED')
    assert job.shown('Restarts') == '1'
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_cancel(slurm, shapes, tmp_path, undisturbed):
    job = Batch(slurm, tmp_path, shapes, gate=True)
    job.wait_for_gate()
    slurm.run('scancel', job.number)
    job.wait_for('CANCELLED')
    wait_until(lambda: not slurm.busy(), 'the end of its processes', interval=0.3)
    assert (job.shown('JobState'), job.shown('Restarts')) == ('CANCELLED', '0')
    saved = outcome(tmp_path / 'run')
    assert saved['iteration'] == str(GATE + 1)
    job.submit()
    job.wait_for('COMPLETED')
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_a_dead_node(slurm, shapes, tmp_path, undisturbed):
    job = Batch(slurm, tmp_path, shapes, gate=True)
    job.wait_for_gate()
    dead = slurm.nodes[1]
    dead.kill()
    # Slurm itself would say so when `SlurmdTimeout` is over.
    slurm.run('scontrol', 'update', f'NodeName={dead.name}', 'State=down', 'Reason=test')
    wait_until(lambda: job.shown('Restarts') == '1', 'the requeue', interval=0.3)
    job.detector.open_gate()
    slurm.start_node(dead)
    slurm.run('scontrol', 'update', f'NodeName={dead.name}', 'State=resume')
    job.wait_for('COMPLETED')
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))
