"""One training at a time in a work directory."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import signal
import socket
from pathlib import Path

import pytest

from poolformer_dense.errors import UserError
from poolformer_dense.runner import folder_lock
from poolformer_dense.runner.folder_lock import FILE_NAME, alone_in
from tests.poolformer_dense.runner import tiny


def _hold(folder: Path, ready: int) -> None:
    with alone_in(folder):
        os.fork() or signal.pause()  # a data loading worker, which outlives its parent
        os.write(ready, b'.')
        signal.pause()


@pytest.fixture
def holder(tmp_path) -> tiny.Child:
    """A process that trains in ``tmp_path/run``."""
    (tmp_path / 'run').mkdir()
    read, write = os.pipe()
    child = tiny.fork(tmp_path / 'result', _hold, tmp_path / 'run', write)
    assert os.read(read, 1)
    workers = Path(f'/proc/{child.pid}/task/{child.pid}/children').read_text().split()
    yield child
    for pid in [*workers, child.pid]:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_a_link_in_a_received_folder_leads_nowhere(tmp_path):
    victim, folder = tmp_path / 'victim', tmp_path / 'run'
    victim.write_text('precious')
    folder.mkdir()
    (folder / FILE_NAME).symlink_to(victim)
    with alone_in(folder):
        assert (folder / FILE_NAME).read_text().startswith(f'{os.getpid()} ')
    assert victim.read_text() == 'precious'


def test_a_second_one_is_refused_by_name(holder, tmp_path):
    host = re.escape(socket.gethostname())
    for _ in range(2):  # the refused one takes nothing away
        with (
            pytest.raises(UserError, match=f'process {holder.pid} on {host}, since .*--work-dir'),
            alone_in(tmp_path / 'run'),
        ):
            pass


def test_one_on_another_host_is_refused_with_what_to_delete(holder, tmp_path):
    path = tmp_path / 'run' / FILE_NAME
    path.write_text('12 elsewhere 2026-11-26 12:00:00\n')
    match = f'process 12 on elsewhere, since 2026-11-26 12:00:00;.* delete {path}'
    with pytest.raises(UserError, match=match), alone_in(tmp_path / 'run'):
        pass
    path.unlink()
    with alone_in(tmp_path / 'run'):
        assert path.read_text().startswith(f'{os.getpid()} ')


def test_a_killed_one_leaves_the_folder_free_at_once(holder, tmp_path):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / 'run' / FILE_NAME).exists()
    with alone_in(tmp_path / 'run'):
        pass
    assert list((tmp_path / 'run').iterdir()) == []


def test_a_process_may_train_again_and_within_itself(tmp_path):
    for _ in range(2):
        with alone_in(tmp_path), alone_in(tmp_path):
            [path] = tmp_path.iterdir()
        assert not path.exists()


def test_a_child_that_leaves_the_block_frees_nothing(tmp_path):
    with alone_in(tmp_path):
        if not (pid := os.fork()):
            try:
                with alone_in(tmp_path / '..' / tmp_path.name):
                    os._exit(2)
            except UserError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (tmp_path / FILE_NAME).exists()


def test_a_file_system_without_locks_is_told_of(tmp_path, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.ENOLCK, 'No locks available')

    said = []
    monkeypatch.setattr(fcntl, 'lockf', refuse)
    monkeypatch.setattr(folder_lock, 'print_log', lambda text, *_: said.append(text))
    with alone_in(tmp_path):
        assert list(tmp_path.iterdir()) == [tmp_path / FILE_NAME]
    assert len(said) == 1
    assert 'a second training in it would not be noticed' in said[0]


def test_a_folder_that_is_not_there_is_not_made(tmp_path):
    with alone_in(tmp_path / 'new'):
        assert not (tmp_path / 'new').exists()


def test_a_run_holds_its_folder_while_it_trains_and_only_then(runs):
    class Contend(tiny.Hook):
        def before_train_epoch(self, runner) -> None:
            train = tiny.fork(runs / 'second', lambda: tiny.tiny_runner(runs / 'run').train())
            assert train.wait() == 1
            validate = tiny.fork(runs / 'third', lambda: tiny.tiny_runner(runs / 'run').val())
            validate.result()

    runner = tiny.tiny_runner(runs / 'run', steps=6)
    runner.register_hook(Contend())
    runner.train()
    assert (
        f'another training runs in {runs}/run: process {os.getpid()}'
        in (runs / 'second').read_text()
    )
    assert not (runs / 'run' / FILE_NAME).exists()
    tiny.tiny_runner(runs / 'run', steps=6).train()


def test_the_ranks_of_a_run_are_one(runs):
    def train() -> None:
        tiny.tiny_runner(runs / 'run', launcher='pytorch', ranks=2, steps=6).train()

    for child in tiny.fork_ranks(2, runs / 'ranks', train):
        child.result()
