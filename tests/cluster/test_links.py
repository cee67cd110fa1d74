"""Hosts that die, ranks that stop and links that fail: the run recovers, or ends with its line."""

from __future__ import annotations

import os
import signal

import pytest

from tests.cluster.hosts import wait_until
from tests.cluster.training import Detector, finished, outcome

REPORT, GIVE_UP = 5, 30  # seconds
LIMITS = ['--cfg-options', f'env_cfg.report_after={REPORT}', f'env_cfg.dist_cfg.timeout={GIVE_UP}']
IN_TIME = GIVE_UP + 70.0  # seconds: torchrun lets its processes go on for 30

# Delays that vary and packets lost at random; and a slow link with a short queue, which loses more.
LINKS = [
    ['netem', 'delay', '10ms', '5ms', 'loss', '2%'],
    ['tbf', 'rate', '4mbit', 'burst', '5kb', 'limit', '10kb'],
]


@pytest.fixture
def at_gate(hosts, shapes, tmp_path):
    """A training whose ranks all wait at the gate: its config and its jobs."""

    def start(*arguments, **variables):
        detector = Detector(tmp_path / 'config', shapes, gate=True)
        jobs = detector.train(hosts, tmp_path / 'run', *arguments, **variables)
        detector.wait_for_gate(hosts)
        return detector, jobs

    return start


def ended_in_time(jobs, seconds=IN_TIME):
    """Every job ended by itself, as a failure."""
    for job in jobs:
        assert job.wait(seconds) not in (0, 75), job.said


def waits(jobs, words):
    """Wait until every job has said something."""
    wait_until(lambda: all(words in job.said for job in jobs), words)


@pytest.mark.parametrize('qdisc', LINKS, ids=lambda qdisc: qdisc[0])
def test_slow_and_lossy(hosts, shapes, tmp_path, undisturbed, qdisc):
    for host in hosts:
        try:
            host.shape(*qdisc)
        except AssertionError as error:
            if 'kind is unknown' in str(error):
                pytest.skip(f'this kernel was built without {qdisc[0]}')
            raise
    detector = Detector(tmp_path / 'config', shapes)
    finished(detector.train(hosts, tmp_path / 'run'))
    assert sum(host.dropped() for host in hosts) > 0
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_a_short_cut_is_reported_and_waited_for(hosts, at_gate, tmp_path, undisturbed):
    detector, jobs = at_gate('--cfg-options', f'env_cfg.report_after={REPORT}')
    hosts[1].cut()
    detector.open_gate()
    waits(jobs, 'has been waiting for')
    hosts[1].restore()
    finished(jobs)
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_a_cut_without_restarts(hosts, at_gate):
    detector, jobs = at_gate(*LIMITS)
    hosts[1].cut()
    detector.open_gate()
    ended_in_time(jobs)
    for rank, (host, job) in enumerate(zip(hosts, jobs, strict=True)):
        assert f'error: rank {rank} on {host.name} has waited for' in job.said


def test_a_cut_with_restarts(hosts, at_gate, tmp_path, undisturbed):
    detector, jobs = at_gate(*LIMITS, MAX_RESTARTS=3)
    hosts[1].cut()
    detector.open_gate()
    waits(jobs, 'has waited for')
    hosts[1].restore()
    finished(jobs)
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


@pytest.mark.parametrize('dead', [0, 1])
def test_a_dead_host_without_restarts(hosts, at_gate, dead):
    detector, jobs = at_gate(*LIMITS)
    hosts[dead].kill()
    detector.open_gate()
    ended_in_time(jobs)
    assert 'error: ' in jobs[1 - dead].said


def test_a_dead_host_with_restarts(hosts, at_gate, tmp_path, undisturbed):
    detector, jobs = at_gate(*LIMITS, MAX_RESTARTS=3)
    hosts[1].kill()
    detector.open_gate()
    # A host that comes back is given the same command.
    [again] = detector.train(hosts, tmp_path / 'run', *LIMITS, only=[1], MAX_RESTARTS=3)
    finished([jobs[0], again])
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


@pytest.mark.parametrize('dead', [0, 1])
def test_a_dead_rank_with_restarts(hosts, at_gate, tmp_path, undisturbed, dead):
    detector, jobs = at_gate(*LIMITS, MAX_RESTARTS=3)
    os.kill(hosts[dead].ranks()[dead], signal.SIGKILL)
    detector.open_gate()
    finished(jobs)
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


def test_a_stopped_rank_without_restarts(hosts, at_gate):
    detector, jobs = at_gate(*LIMITS)
    stopped = hosts[1].ranks()[1]
    os.kill(stopped, signal.SIGSTOP)
    detector.open_gate()
    ended_in_time(jobs[:1])
    assert 'error: rank 0 on alpha has waited for' in jobs[0].said
    os.kill(stopped, signal.SIGCONT)
    ended_in_time(jobs[1:])


def test_a_stopped_rank_with_restarts(hosts, at_gate, tmp_path, undisturbed):
    detector, jobs = at_gate(*LIMITS, MAX_RESTARTS=3)
    os.kill(hosts[1].ranks()[1], signal.SIGSTOP)
    detector.open_gate()
    finished(jobs)
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))


@pytest.mark.parametrize('there', [0, 1])
@pytest.mark.parametrize('restarts', [0, 3])
def test_a_host_that_never_joins(hosts, shapes, tmp_path, there, restarts):
    settings = dict(REPORT_AFTER=REPORT, JOIN_TIMEOUT=15, MAX_RESTARTS=restarts)
    detector = Detector(tmp_path / 'config', shapes)
    [job] = detector.train(hosts, tmp_path / 'run', only=[there], **settings)
    ended_in_time([job])
    assert 'waiting' in job.said
    assert 'error: ' in job.said


def test_a_second_run_on_the_port(hosts, shapes, tmp_path, undisturbed, at_gate):
    detector, jobs = at_gate()
    second = Detector(tmp_path / 'second', shapes)
    others = second.train(hosts, tmp_path / 'run2', JOB_ID='second')
    ended_in_time(others)
    assert 'port 29500' in others[0].said
    detector.open_gate()
    finished(jobs)
    assert outcome(tmp_path / 'run') == outcome(undisturbed(2))
