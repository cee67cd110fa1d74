"""Ranks that wait say for whom, and give up what is in vain; real ranks, with limits of seconds."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mmengine.hooks import Hook
from torch.distributed import TCPStore

from poolformer_dense.errors import UserError
from poolformer_dense.runner import waiting
from poolformer_dense.runner.board import Board, Sign
from poolformer_dense.runner.waiting import Watch, judge
from tests.poolformer_dense.runner import launching, tiny

REPORT_AFTER = 1.0  # seconds


class Stuck(Hook):
    """Does something at a point of a rank."""

    def __init__(self, rank: int, point: str, action: Callable[[], Any]) -> None:
        self.rank, self.point, self.action = rank, point, action

    def _act(self, point: str) -> None:
        if os.environ['RANK'] == str(self.rank) and point == self.point:
            self.action()

    def before_train(self, runner: Any) -> None:
        self._act('before_train')

    def after_train_iter(self, runner: Any, batch_idx: int, *_: Any, **__: Any) -> None:
        self._act(f'iteration {runner.iter + 1}')


class Ranks:
    """Ranks of the tiny run, which open their group themselves.

    Attributes:
        children: The processes.
    """

    def __init__(self, folder: Path, port: int, size: int = 2) -> None:
        self.folder, self.port, self.size = folder, port, size
        self.children: dict[int, tiny.Child] = {}

    def start(self, rank: int, function: Callable[..., Any], *arguments: Any) -> None:
        self.children[rank] = tiny.fork(
            self.folder / f'rank{rank}', self._run, rank, function, *arguments
        )

    def _run(self, rank: int, function: Callable[..., Any], *arguments: Any) -> Any:
        output = os.open(self.folder / f'said{rank}', os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 2)
        os.environ |= {
            'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(self.size),
            'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(self.port),
        }  # fmt: skip
        return function(*arguments)

    def said(self, rank: int) -> str:
        path = self.folder / f'said{rank}'
        return path.read_text() if path.exists() else ''

    def wait_until_said(self, rank: int, pattern: str) -> str:
        """Wait until a rank has said something; return it."""
        found: list[str] = []

        def look() -> bool:
            found[:] = re.findall(f'.*{pattern}.*', self.said(rank))
            return bool(found)

        try:
            launching.wait_for(look, seconds=60)
        except AssertionError:
            pytest.fail(f'rank {rank} did not say {pattern!r}: {self.said(rank)}')
        return found[0]


@pytest.fixture
def ranks(runs: Path, free_port: int) -> Iterator[Ranks]:
    ranks = Ranks(runs, free_port)
    yield ranks
    for child in ranks.children.values():
        try:
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
        except (ProcessLookupError, ChildProcessError):
            pass


@contextmanager
def held() -> Iterator[tuple[Callable[[], None], Callable[[], None]]]:
    """An action that blocks, and one that lets it go on."""
    read, write = os.pipe()
    yield lambda: os.read(read, 1), lambda: os.write(write, b'.')
    os.close(read)
    os.close(write)


def train(folder: Path, timeout: float = 1800, hook: Hook | None = None, **options: Any) -> None:
    cfg = tiny.tiny_config(folder / 'run', launcher='pytorch', ranks=2, **options)
    cfg.env_cfg.dist_cfg = dict(backend='nccl', timeout=timeout)
    cfg.env_cfg.report_after = REPORT_AFTER
    runner = tiny.build_runner(cfg)
    if hook is not None:
        runner.register_hook(hook, 'VERY_HIGH')
    runner.train()


SAID = r'rank 0 on \S+ has been waiting for [\d.]+ s in {where} \({call}\): {reason}'


def test_a_rank_that_is_late_is_named_and_waited_for(ranks, runs):
    with held() as (block, release):
        for rank in (0, 1):
            ranks.start(rank, train, runs, 1800, Stuck(1, 'iteration 3', block))
        late = rf'rank 1 on \S+ \(process {ranks.children[1].pid}\) has been in iteration 3 '
        ranks.wait_until_said(0, SAID.format(where='iteration 3', call=r'\w+', reason=late))
        assert 'iteration 3' not in ranks.said(1)
        release()
        for child in ranks.children.values():
            child.result()


def test_a_stopped_rank_is_given_up(ranks, runs):
    with held() as (block, _):
        for rank in (0, 1):
            ranks.start(rank, train, runs, 4, Stuck(1, 'iteration 3', block))
        late = 'rank 1 on .* has been in iteration 3 '
        ranks.wait_until_said(0, SAID.format(where='iteration 3', call=r'\w+', reason=late))
        os.kill(ranks.children[1].pid, signal.SIGSTOP)
        assert ranks.children[0].wait() == 2
    [error] = re.findall('error: .*', ranks.said(0))
    silent = rf'rank 1 on \S+ \(process {ranks.children[1].pid}\) has given no sign of life for .* '
    assert re.match(r'error: rank 0 on \S+ has waited for [\d.]+ s in iteration 3 ', error)
    assert re.search(f'{silent}.* the last in iteration 3', error)
    assert 'env_cfg.dist_cfg.timeout=4' in error


def test_a_stopped_first_rank_is_given_up_by_the_others(ranks, runs):
    with held() as (block, _):
        for rank in (0, 1):
            ranks.start(rank, train, runs, 4, Stuck(0, 'iteration 3', block))
        ranks.wait_until_said(1, 'rank 0 on .* has been in iteration 3 ')
        os.kill(ranks.children[0].pid, signal.SIGSTOP)
        assert ranks.children[1].wait() == 2
    assert re.search('error: rank 1 .*rank 0 on 127.0.0.1 has not answered for', ranks.said(1))


def test_the_evaluation_of_the_first_rank_is_not_given_up(ranks, runs, monkeypatch):
    compute = tiny.TinyMetric.compute_metrics
    with held() as (block, release):

        def slow(metric: tiny.TinyMetric, results: list) -> dict[str, float]:
            block()
            return compute(metric, results)

        monkeypatch.setattr(tiny.TinyMetric, 'compute_metrics', slow)
        for rank in (0, 1):
            ranks.start(rank, train, runs, 2)
        ranks.wait_until_said(1, r'in the evaluation \(broadcast_object_list\): rank 0 on .* has')
        # Longer than what would end a wait in vain.
        ranks.wait_until_said(1, r'waiting for ([4-9]|\d\d)[\d.]* s in the evaluation')
        for _ in range(2):
            release()
        for child in ranks.children.values():
            child.result()
    assert 'error' not in ranks.said(0) + ranks.said(1)


def test_a_rank_that_does_not_join_is_named(ranks, runs):
    ranks.start(0, train, runs, 3)
    ranks.wait_until_said(0, r'in joining the run .*: rank 1 of 2 did not join')
    assert ranks.children[0].wait() == 2
    assert re.search('error: rank 0 .*: rank 1 of 2 did not join', ranks.said(0))


def test_a_first_rank_that_does_not_come_is_named(ranks, runs):
    def join() -> str:
        with pytest.raises(UserError) as refusal:
            train(runs, 2.5)
        return str(refusal.value)

    ranks.start(1, join)
    where = rf'rank 0 at 127.0.0.1, port {ranks.port}, to answer \(Connection refused\)'
    assert re.search(where, ranks.children[1].result())
    assert re.search(rf'^rank 1 on \S+ has been waiting for .* for {where}', ranks.said(1))


def test_another_runs_port_is_not_taken_for_this_ones(ranks, runs, monkeypatch):
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    store = TCPStore('127.0.0.1', ranks.port, None, True, wait_for_workers=False)
    store.set('poolformer_dense/board//6/', '1 word')
    ranks.start(1, train, runs, 2.5)
    ranks.wait_until_said(1, 'to begin; or is that the port of another run')
    assert ranks.children[1].wait() == 1


def test_the_flight_recorder_is_asked_before_the_end(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(waiting, '_RECORDING', 0)
    monkeypatch.setenv('TORCH_NCCL_DEBUG_INFO_PIPE_FILE', str(tmp_path / 'nccl'))
    os.mkfifo(tmp_path / 'nccl3.pipe')
    waiting._ask_flight_recorder(3)
    assert 'rank 3 does not read its pipe' in capfd.readouterr().err
    recorder = os.open(tmp_path / 'nccl3.pipe', os.O_RDONLY | os.O_NONBLOCK)
    waiting._ask_flight_recorder(3)
    assert os.read(recorder, 10) == b'1\n'
    os.close(recorder)


def test_a_port_in_use_is_said_at_once(ranks, runs):
    def join() -> str:
        with pytest.raises(UserError) as refusal:
            train(runs)
        return str(refusal.value)

    with socket.create_server(('', ranks.port)):
        ranks.start(0, join)
        said = ranks.children[0].result()
    assert f'port {ranks.port} of this host' in said
    assert f'in use by process {os.getpid()} (' in said
    assert f'PORT={ranks.port + 1}' in said


@pytest.mark.parametrize('value', ['long', 0, -1, True, float('inf')])
def test_a_limit_that_is_no_time_is_refused(ranks, runs, value):
    def join() -> str:
        with pytest.raises(UserError) as refusal:
            train(runs, value)
        return str(refusal.value)

    ranks.start(0, join)
    assert ranks.children[0].result().startswith(f'env_cfg.dist_cfg.timeout is {value!r}: ')


def sign(**changes: Any) -> Sign:
    given = dict(host='n1', pid=7, count=5, place='iteration 9', call='', busy=False, lasted=1.0)
    return Sign(**given | changes)


@pytest.mark.parametrize(
    ('signs', 'said', 'excused'),
    [
        ({1: sign()}, 'ranks 2, 3 of 4 did not join', False),
        (dict.fromkeys((1, 2, 3), sign(call='f')), 'all the others have come as far', False),
        (dict.fromkeys((1, 2, 3), sign(count=4, busy=True)), 'rank 1 on n1 .*; rank 3 on n1', True),
        ({1: sign(), 2: sign(count=4), 3: sign(count=3)}, r'^rank 3 on n1 \(process 7\) ', False),
        ({1: sign(), 2: sign(age=9.0), 3: sign(count=3)}, '^rank 2 .*no sign of life for 9', False),
        ({1: sign(), 2: sign(ended=True), 3: sign(busy=True)}, '^rank 2 .* has ended$', False),
        ({1: sign(call='f'), 2: sign(), 3: sign(call='f')}, '^rank 2 on n1 [^;]*$', False),
        ({1: sign(call='f'), 2: sign(), 3: sign(busy=True)}, '^rank 3 on n1 [^;]*$', True),
    ],
)  # fmt: skip
def test_for_whom_a_rank_waits(signs, said, excused):
    reason, busy = judge(0, {0: sign(call='f')} | signs, size=4, quiet=5.0)
    assert re.search(said, reason)
    assert busy == excused


def test_a_rank_knows_that_the_others_wait_for_it():
    signs = {0: sign(), 1: sign(call='f'), 2: sign(count=6)}
    assert judge(0, signs, size=3, quiet=5.0) == ('the others wait for it', False)


def test_who_waits_is_not_busy(monkeypatch):
    """Else a network that fails at the first collective would never be given up."""
    watch = Watch(0, 2, 'n1', Board(), report_after=1000)
    watch.enter('the evaluation', busy=True)
    assert watch._sign().busy
    monkeypatch.setattr(waiting, '_waiting_call', lambda thread: 'all_gather_object')
    assert not watch._sign().busy
    watch._leaving.set()


def test_a_long_list_of_ranks_is_cut():
    reason, _ = judge(0, {0: sign()}, size=64, quiet=5.0)
    assert reason == 'ranks 1, 2, 3, 4, 5 and 58 more of 64 did not join'
