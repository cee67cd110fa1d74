"""Processes that join, and part when they end."""

from __future__ import annotations

import atexit
import os
import select
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed

from poolformer_dense.runner import waiting
from poolformer_dense.runner.launch import join_processes
from tests.poolformer_dense.runner import tiny


def ended(folder: Path, port: int, size: int, function: Callable[..., Any]) -> list[Any]:
    """Run a function in ranks that join and end as processes do; return its results."""

    def rank(number: int) -> Any:
        os.environ |= {
            'RANK': str(number), 'WORLD_SIZE': str(size), 'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
        }  # fmt: skip
        atexit._clear()
        return function(number)

    children = [tiny.fork(folder / f'rank{number}', rank, number) for number in range(size)]
    return [child.result() for child in children]


def test_the_group_is_closed_when_the_process_ends(runs, free_port):
    def end(rank: int) -> list[bool]:
        join_processes('pytorch')
        joined = is_distributed()
        atexit._run_exitfuncs()
        return [joined, is_distributed()]

    assert ended(runs, free_port, 2, end) == [[True, False]] * 2


def test_the_group_of_somebody_else_stays_open(runs, free_port):
    def end(rank: int) -> bool:
        torch.distributed.init_process_group('gloo')
        join_processes('pytorch')
        atexit._run_exitfuncs()
        return is_distributed()

    assert ended(runs, free_port, 1, end) == [True]


def test_a_collective_under_way_does_not_hold_up_the_end(runs, free_port, monkeypatch):
    monkeypatch.setattr('poolformer_dense.runner.launch._PARTING', 0.5)
    read, write = os.pipe()

    def end(rank: int) -> None:
        join_processes('pytorch')
        if rank == 1:
            work = torch.distributed.barrier(async_op=True)  # nobody else comes
            atexit._run_exitfuncs()
            os.write(write, b'.' if work else b'')
        else:
            os.read(read, 1)

    ended(runs, free_port, 2, end)


def test_the_first_rank_leaves_last(runs, free_port):
    """It holds torch's store, which the backend of the others may still ask."""
    read, write = os.pipe()

    def end(rank: int) -> list[int]:
        join_processes('pytorch')
        waiting.leave_hooks(None, 'after_run')
        # The first rank has a second to leave before the other.
        before = select.select([read], [], [], 1.0)[0] if rank else []
        atexit._run_exitfuncs()
        if rank == 0:
            os.write(write, b'.')
        return before

    assert ended(runs, free_port, 2, end) == [[], []]
