"""Ranks whose folders are not one agree on what they load, or all end with the same line."""

from __future__ import annotations

import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from poolformer_dense import files
from poolformer_dense.errors import UserError
from poolformer_dense.runner.agreement import collecting_anywhere
from poolformer_dense.runner.ranks import by_host, failing_together, hosts_without
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(ranks=2, launcher='pytorch', ema=True)


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.said.append(record.getMessage())


def _run(nodes: Path, load_from: str | None = None, **options: Any) -> tuple[Any, str]:
    """Train on a node, whose folder has the rank's number; what it ended with, and what it said."""
    node = nodes / os.environ['RANK']
    (node / 'here').mkdir(parents=True, exist_ok=True)
    os.chdir(node / 'here')
    cfg = tiny.tiny_config(node / 'run', **OPTIONS | options)
    cfg.load_from = load_from
    runner = tiny.build_runner(cfg)
    listener = _Listener()
    runner.logger.addHandler(listener)
    try:
        runner.train()
    except UserError as error:
        return str(error).replace(str(node), 'NODE'), '\n'.join(listener.said)
    finally:
        runner.logger.removeHandler(listener)
    # Batch norm's statistics are each rank's own.
    averaged = [
        dict(h.ema_model.named_parameters()) for h in runner.hooks if hasattr(h, 'ema_model')
    ]
    state = [dict(runner.model.named_parameters()), averaged, runner.optim_wrapper.state_dict()]
    return tiny.checksum(state), '\n'.join(listener.said)


@pytest.fixture(scope='module')
def two(warmed, tmp_path_factory):
    """Run a function on two ranks, of which each has files of its own."""

    def start(folder: Path, function=_run, **options: Any) -> list[Any]:
        children = tiny.fork_ranks(2, folder / 'ranks', function, folder, **options)
        return [child.result() for child in children]

    return start


@pytest.fixture(scope='module')
def whole(two, tmp_path_factory) -> Path:
    """Two epochs of both ranks; the first one's folder has the checkpoints."""
    folder = tmp_path_factory.mktemp('agreement')
    (first, said), (second, _) = two(folder)
    assert first == second
    assert list((folder / '0/run').glob('epoch_*.pth'))
    assert not list((folder / '1/run').glob('epoch_*.pth'))
    assert 'is not shared: ' in said
    return folder


@pytest.fixture
def nodes(whole, tmp_path) -> Path:
    """The same after one epoch, to be resumed."""
    shutil.copytree(whole, tmp_path / 'nodes')
    (tmp_path / 'nodes/0/run/epoch_2.pth').unlink()
    (tmp_path / 'nodes/0/run/last_checkpoint').unlink()
    return tmp_path / 'nodes'


@pytest.fixture
def uninterrupted(whole) -> str:
    return tiny.checksum(torch.load(whole / '0/run/epoch_2.pth', weights_only=False)['state_dict'])


def _weights(node: Path, name: str = 'epoch_2.pth') -> str:
    return tiny.checksum(torch.load(node / 'run' / name, weights_only=False)['state_dict'])


def _another(path: Path, to: Path, **meta: Any) -> None:
    """Save a checkpoint again with other weights."""
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['state_dict'] = {k: v * 2 for k, v in checkpoint['state_dict'].items()}
    checkpoint['meta'] |= meta
    to.parent.mkdir(parents=True, exist_ok=True)
    files.save_sealed(checkpoint, to)


def test_what_the_first_rank_has_reaches_the_others(two, nodes, uninterrupted):
    (first, said), (second, _) = two(nodes, resume=True)
    assert first == second
    assert _weights(nodes / '0') == uninterrupted
    assert 'rank 0 sends its own' in said


def test_the_same_file_everywhere_is_read_everywhere(two, nodes, uninterrupted):
    shutil.copy(nodes / '0/run/epoch_1.pth', nodes / '1/run')
    (first, said), (second, _) = two(nodes, resume=True)
    assert first == second
    assert _weights(nodes / '0') == uninterrupted
    assert 'sends its own' not in said


def test_others_under_the_same_name_end_all(two, nodes):
    _another(nodes / '0/run/epoch_1.pth', nodes / '1/run/epoch_1.pth')
    (first, _), (second, _) = two(nodes, resume=True)
    assert first == second
    assert 'epoch_1.pth is not the same file on all hosts' in first
    assert '(rank 0): checksum ' in first
    assert '(rank 1): checksum ' in first
    assert '\n' not in first


@pytest.mark.parametrize('meta', [dict(iter=12), dict(run='another')])
def test_what_the_first_rank_lacks_ends_all(two, nodes, meta):
    _another(nodes / '0/run/epoch_1.pth', nodes / '1/run/epoch_2.pth', **meta)
    (first, _), (second, _) = two(nodes, resume=True)
    assert first == second
    assert '(rank 0): epoch_1.pth (iteration 6)' in first
    assert f'(rank 1): epoch_2.pth (iteration {meta.get("iter", 6)})' in first


def test_a_checkpoint_of_another_rank_alone_ends_all(two, nodes):
    shutil.move(nodes / '0/run/epoch_1.pth', nodes / '1/run')
    (nodes / '0/run/last_start').unlink()
    (first, _), (second, _) = two(nodes, resume=True)
    assert first == second
    assert '(rank 0): no checkpoint' in first
    assert '(rank 1): epoch_1.pth (iteration 6)' in first


def _unlike(nodes: Path, first: dict[str, Any], second: dict[str, Any]) -> Any:
    return _run(nodes, **(first if os.environ['RANK'] == '0' else second))


@pytest.mark.parametrize(
    ('first', 'second', 'differ'),
    [
        ({}, dict(resume=True), ('begin', 'resume')),
        (dict(resume=True), dict(load_from='a.pth'), ('resume', 'load from a named checkpoint')),
        (
            {},
            dict(accumulate=2),
            tuple(f'begin, optim_wrapper.accumulative_counts={n}' for n in (1, 2)),
        ),
        ({}, dict(steps=18), tuple(f'begin, train_cfg.max_epochs={n}' for n in (2, 3))),
    ],
)
def test_ranks_that_are_not_started_alike_end_all(two, tmp_path, first, second, differ):
    (said, _), (other, _) = two(tmp_path, _unlike, first=first, second=second)
    assert said == other
    host = socket.gethostname()
    assert f'{host} (rank 0): {differ[0]}; {host} (rank 1): {differ[1]}. Give all nodes' in said


def test_a_new_training_begins_on_all_or_on_none(two, tmp_path):
    (first, said), (second, _) = two(tmp_path, resume=True)
    assert first == second
    assert 'to resume from; a new training begins' in said


def test_a_restart_finds_what_another_rank_saved(two, nodes, monkeypatch):
    # torchrun numbers the nodes anew.
    monkeypatch.setenv('LAUNCH_ID', 'a')
    two(nodes, steps=6)
    (nodes / '0').rename(nodes / '2')
    (nodes / '1').rename(nodes / '0')
    (nodes / '2').rename(nodes / '1')
    (first, _), (second, _) = two(nodes)
    assert first == second
    assert '(rank 1): epoch_1.pth (iteration 6)' in first


def _start_from(nodes: Path, resume: bool) -> tuple[Any, str]:
    path = nodes / os.environ['RANK'] / 'run/epoch_1.pth'
    return _run(nodes, str(path), resume=resume)


@pytest.mark.parametrize('resume', [False, True])
def test_a_named_file_reaches_the_others(two, nodes, resume):
    (first, _), (second, _) = two(nodes, _start_from, resume=resume)
    assert first == second


@pytest.mark.parametrize('resume', [False, True])
def test_a_named_file_that_differs_ends_all(two, nodes, resume):
    _another(nodes / '0/run/epoch_1.pth', nodes / '1/run/epoch_1.pth')
    (first, _), (second, _) = two(nodes, _start_from, resume=resume)
    assert '(rank 1): checksum ' in first
    assert '(rank 1): checksum ' in second


def test_a_named_file_must_be_where_rank_0_is(two, nodes):
    shutil.move(nodes / '0/run/epoch_1.pth', nodes / '1/run')
    (first, _), (second, _) = two(nodes, _start_from, resume=False)
    for said in (first, second):
        assert '(rank 0): not there' in said
        assert '(rank 1): checksum ' in said


def _metrics(nodes: Path, **metric: Any) -> Any:
    node = nodes / os.environ['RANK']
    node.mkdir(parents=True, exist_ok=True)
    os.chdir(node)
    logger = logging.getLogger('test')
    try:
        return collecting_anywhere([metric], logger)
    except UserError as error:
        return str(error)


def test_a_metric_that_collects_over_files_alone_is_refused(two, tmp_path):
    for said in two(tmp_path, _metrics, type=_OverFiles):
        assert said.startswith('_OverFiles collects results over files in ')
    changed = two(tmp_path, _metrics, type='TinyMetric', collect_dir='.')
    assert changed == [[dict(type='TinyMetric', collect_device='gpu')]] * 2


class _OverFiles(tiny.TinyMetric):
    def __init__(self) -> None:
        super().__init__()


def _together(nodes: Path) -> list[Any]:
    said = []
    for failing in ([], ['1'], ['0', '1']):
        try:
            with failing_together():
                if os.environ['RANK'] in failing:
                    raise UserError('no space')
            said.append(None)
        except UserError as error:
            said.append(str(error))
    shared = hosts_without(nodes)
    (nodes / os.environ['RANK']).mkdir()
    apart = hosts_without(nodes / os.environ['RANK'])
    return [*said, shared, len(apart)]


def test_an_error_of_one_rank_is_one_of_all(two, tmp_path):
    first, second = two(tmp_path, _together)
    assert first == second
    nothing, one, both, shared, apart = first
    assert nothing is None
    assert one == f'{socket.gethostname()} (rank 1): no space'
    assert (both, shared, apart) == ('no space', [], 1)
    assert not list(tmp_path.rglob('.seen*'))


def test_ranks_are_told_by_host():
    facts = [('a', 'x')] * 3 + [('b', 'y'), ('b', 'z'), ('b', 'y'), ('c', None)]
    assert by_host(facts) == 'a (ranks 0-2): x; b (ranks 3, 5): y; b (rank 4): z'
