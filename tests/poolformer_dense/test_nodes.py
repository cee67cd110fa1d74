"""Nodes that meet before torchrun starts, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from poolformer_dense.errors import UserError
from poolformer_dense.nodes import Nodes
from tests.poolformer_dense.runner import launching, tiny


@pytest.fixture
def store(tmp_path) -> Iterator[TCPStore]:
    """What torchrun opens on node 0, in a process of its own as there."""
    read, write = os.pipe()

    def hold() -> None:
        server = TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False)
        os.write(write, str(server.port).encode())
        signal.pause()

    holder = tiny.fork(tmp_path / 'store', hold)
    yield TCPStore('127.0.0.1', int(os.read(read, 8)), None, False, wait_for_workers=False)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()


def nodes(port: int, rank: int | None, number: int = 2, **changes: Any) -> Nodes:
    given = dict(
        address='127.0.0.1', run='job 7', elastic=False, report_after=0.2, give_up_after=60.0,
        script=os.getpid(),
    )  # fmt: skip
    return Nodes(port=port, rank=rank, number=number, **given | changes)


def staying(folder: Path, node: Nodes) -> tuple[tiny.Child, Path]:
    """Let a node's process stay beside torchrun; return it and where it writes."""
    said = folder / f'said{node.rank}'

    def stay() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        node._stay(None)

    return tiny.fork(folder / 'result', stay), said


def joining(folder: Path, node: Nodes) -> tiny.Child:
    """Prepare a node; the process ends as the one that stays beside torchrun."""

    def join() -> None:
        node.prepare()
        sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))

    return tiny.fork(folder / f'joined{node.rank}', join)


def wait_for(said: Path, pattern: str) -> None:
    launching.wait_for(
        lambda: said.exists() and re.search(pattern, said.read_text()) is not None, seconds=30
    )


def test_missing_nodes_are_named_until_they_come(tmp_path, store):
    node = nodes(store.port, 0, number=4)
    first, said = staying(tmp_path, node)
    wait_for(
        said, r'^node 0 \(.*\) has been waiting for \d+ s for nodes 1, 2, 3 of 4, at 127.0.0.1'
    )
    third = joining(tmp_path, nodes(store.port, 2, number=4))
    wait_for(said, 'for nodes 1, 3 of 4')
    others = [joining(tmp_path, nodes(store.port, rank, number=4)) for rank in (1, 3)]
    # Each ends once all are there.
    assert [child.wait() for child in (first, third, *others)] == [0] * 4


def test_a_node_that_never_comes_is_given_up(tmp_path, store):
    child, said = staying(tmp_path, nodes(store.port, 0, give_up_after=1.0))
    assert child.wait() == 2
    assert re.search(r'error: node 0 .* for node 1 of 2, .* JOIN_TIMEOUT=1', said.read_text())


def test_a_node_waits_for_the_first(free_port, capfd):
    with pytest.raises(UserError, match=r'for torchrun of node 0 at 127.0.0.1, port \d+ \('):
        nodes(free_port, 1, give_up_after=1.0).prepare()
    assert 'node 1 (' in capfd.readouterr().err


def test_another_run_at_the_port_is_refused(store):
    store.set('poolformer_dense/nodes/run', 'job 6')
    with pytest.raises(UserError, match=r'another run \(job 6; this one is job 7\).*PORT=\d+'):
        nodes(store.port, 1).prepare()


def test_a_run_that_is_complete_takes_no_further_node(tmp_path, store):
    for rank in (0, 1):
        store.set(f'poolformer_dense/nodes/{rank}', f'n{rank}')
    with pytest.raises(UserError, match=r'has its 2 nodes already \(n0, n1\)'):
        nodes(store.port, 1).prepare()
    # It may take the place of one that failed.
    assert joining(tmp_path, nodes(store.port, 1, elastic=True)).wait() == 0


@pytest.mark.parametrize('number', [1, 2])
def test_a_port_in_use_is_refused_on_the_first_node(number):
    with (
        socket.create_server(('', 0)) as other,
        pytest.raises(UserError, match=f'in use by process {os.getpid()} .*PORT='),
    ):
        nodes(other.getsockname()[1], 0, number=number).prepare()


def test_the_script_refuses_a_port_in_use(root):
    if shutil.which('bash') is None:
        pytest.skip('there is no bash')
    with socket.create_server(('', 0)) as other:
        environment = os.environ | {
            'PORT': str(other.getsockname()[1]), 'VIRTUAL_ENV': sys.prefix,
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        }  # fmt: skip
        done = subprocess.run(
            [root / 'tools/dist_train.sh', 'config.py', '2'], env=environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f'error: port {environment["PORT"]} of this host')
    assert done.stderr.count('\n') == 1
