"""Nodes that meet before torchrun starts, each in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import TCPStore

from poolformer_dense.errors import UserError
from poolformer_dense.nodes import Nodes
from tests.poolformer_dense.runner import launching, tiny


@pytest.fixture
def store() -> TCPStore:
    """What torchrun opens on node 0."""
    return TCPStore('127.0.0.1', 0, None, True, wait_for_workers=False)


def nodes(port: int, rank: int | None, number: int = 2, **changes: Any) -> Nodes:
    given = dict(
        address='127.0.0.1', run='job 7', elastic=False, report_after=0.2, give_up_after=60.0,
        script=os.getpid(),
    )  # fmt: skip
    return Nodes(port=port, rank=rank, number=number, **given | changes)


def staying(folder: Path, node: Nodes) -> Path:
    """Let a node's process stay beside torchrun; return where it writes."""
    said = folder / f'said{node.rank}'

    def stay() -> None:
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        node._stay(None)

    tiny.fork(folder / 'result', stay)
    return said


def wait_for(said: Path, pattern: str) -> None:
    launching.wait_for(
        lambda: said.exists() and re.search(pattern, said.read_text()) is not None, seconds=30
    )


def test_missing_nodes_are_named_until_they_come(tmp_path, store):
    node = nodes(store.port, 0, number=4)
    said = staying(tmp_path, node)
    wait_for(
        said, r'^node 0 \(.*\) has been waiting for \d+ s for nodes 1, 2, 3 of 4, at 127.0.0.1'
    )
    nodes(store.port, 2, number=4).prepare()
    wait_for(said, 'for nodes 1, 3 of 4')
    for rank in (1, 3):
        nodes(store.port, rank, number=4).prepare()
    # Each ends once all are there.
    assert [os.wait()[1] for _ in range(4)] == [0] * 4


def test_a_node_that_never_comes_is_given_up(tmp_path, store):
    said = staying(tmp_path, nodes(store.port, 0, give_up_after=1.0))
    os.wait()
    assert re.search(r'error: node 0 .* for node 1 of 2, .* JOIN_TIMEOUT=1', said.read_text())


def test_a_node_waits_for_the_first(free_port, capfd):
    with pytest.raises(UserError, match=r'for torchrun of node 0 at 127.0.0.1, port \d+ \('):
        nodes(free_port, 1, give_up_after=1.0).prepare()
    assert 'node 1 (' in capfd.readouterr().err


def test_another_run_at_the_port_is_refused(store):
    store.set('poolformer_dense/nodes/run', 'job 6')
    with pytest.raises(UserError, match=r'another run \(job 6; this one is job 7\).*PORT=\d+'):
        nodes(store.port, 1).prepare()


def test_a_run_that_is_complete_takes_no_further_node(store):
    for rank in (0, 1):
        store.set(f'poolformer_dense/nodes/{rank}', f'n{rank}')
    with pytest.raises(UserError, match=r'has its 2 nodes already \(n0, n1\)'):
        nodes(store.port, 1).prepare()
    nodes(store.port, 1, elastic=True).prepare()  # it may take the place of one that failed
    os.wait()


@pytest.mark.parametrize('number', [1, 2])
def test_a_port_in_use_is_refused_on_the_first_node(number, store):
    with pytest.raises(UserError, match=f'in use by process {os.getpid()} .*PORT='):
        nodes(store.port, 0, number=number).prepare()


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
