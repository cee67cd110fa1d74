"""Which checkpoint a run goes on from."""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backbones.checkpoints import read_checkpoint
from poolformer_dense import files
from poolformer_dense.errors import UserError
from poolformer_dense.runner.resume import newest_intact, saved_checkpoints
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(checkpoint=dict(type='AtomicCheckpointHook', minutes=0))


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Write a checkpoint of nothing into tmp_path."""

    def write(name: str, saved_at: float, iteration: int = 0, **more) -> Path:
        meta = dict(iter=iteration, epoch=0, saved_at=saved_at)
        checkpoint = dict(meta=meta, optimizer={}, state_dict=dict(w=torch.zeros(300))) | more
        files.save_sealed(checkpoint, tmp_path / name)
        return tmp_path / name

    return write


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


class TestNewestIntact:
    def test_the_newest_is_what_was_saved_last(self, save, tmp_path):
        # Names and dates of files say something else after a copy, or after going back in a run.
        newest = save('epoch_2.pth', 300.0)
        save('epoch_9.pth', 200.0)
        save('iter_70.pth', 100.0)
        os.utime(newest, (0, 0))
        assert newest_intact(tmp_path) == (newest, [])

    def test_iterations_decide_within_a_moment(self, save, tmp_path):
        save('epoch_1.pth', 5.0, 10)
        newest = save('iter_11.pth', 5.0, 11)
        assert newest_intact(tmp_path) == (newest, [])

    def test_older_ones_are_not_read(self, save, tmp_path):
        first, second, third = (save(f'epoch_{n}.pth', float(n)) for n in (1, 2, 3))
        _flip(first)
        _flip(third)
        read = []

        def reading(path: Path) -> None:
            read.append(path)
            read_checkpoint(path)

        path, [line] = newest_intact(tmp_path, read=reading)
        assert (path, read) == (second, [third, second])
        assert line.startswith(f'{third}: ')

    def test_last_checkpoint_is_no_more_than_a_hint(self, save, tmp_path):
        old, new = save('epoch_1.pth', 1.0), save('epoch_2.pth', 2.0)
        (tmp_path / 'last_checkpoint').write_text(str(old))
        assert newest_intact(tmp_path)[0] == new
        (tmp_path / 'last_checkpoint').write_bytes(b'')
        assert newest_intact(tmp_path)[0] == new

    def test_it_leads_to_another_folder(self, save, tmp_path):
        newest = save('epoch_1.pth', 1.0)
        (tmp_path / 'work').mkdir()
        (tmp_path / 'work/last_checkpoint').write_text(str(newest))
        assert newest_intact(tmp_path / 'work')[0] == newest

    def test_a_folder_can_be_moved(self, save, tmp_path):
        (tmp_path / 'there').mkdir()
        save('there/model.pth', 1.0)
        (tmp_path / 'there/last_checkpoint').write_text('/nowhere/before/model.pth')
        assert newest_intact(tmp_path / 'there')[0] == tmp_path / 'there/model.pth'

    @pytest.mark.parametrize('damage', ['flip', 'cut', 'empty'])
    def test_a_damaged_one_is_passed_over_by_name(self, save, tmp_path, damage):
        old, new = save('epoch_1.pth', 1.0), save('epoch_2.pth', 2.0)
        if damage == 'flip':
            _flip(new)
        else:
            os.truncate(new, 0 if damage == 'empty' else 700)
        path, [line] = newest_intact(tmp_path)
        assert path == old
        assert re.match(f'{new}: .*(truncated|damaged)', line)

    def test_weights_alone_are_passed_over(self, save, tmp_path):
        files.save_sealed(dict(state_dict={}), tmp_path / 'epoch_2.pth')
        old = save('epoch_1.pth', 1.0)
        path, passed_over = newest_intact(tmp_path)
        assert path == old
        assert passed_over == [f'{tmp_path}/epoch_2.pth: it holds only weights']

    def test_files_of_mmengine_count_unless_damaged(self, tmp_path):
        def old(name: str, time: float) -> Path:
            path = tmp_path / name
            torch.save(dict(meta=dict(iter=1), optimizer={}, w=torch.zeros(300)), path)
            os.utime(path, (time, time))
            return path

        first, second = old('epoch_1.pth', 1e9), old('epoch_2.pth', 2e9)
        assert newest_intact(tmp_path)[0] == second
        content = second.read_bytes()
        second.write_bytes(content.replace(b'\0' * 100, b'\0' * 99 + b'\1', 1))
        os.utime(second, (2e9, 2e9))
        assert newest_intact(tmp_path) == (first, [f'{second}: damaged'])

    def test_nothing_is_not_an_error(self, tmp_path):
        (tmp_path / 'best_mAP_epoch_3.pth').touch()
        assert newest_intact(tmp_path) == (None, [])
        assert newest_intact(tmp_path / 'missing') == (None, [])

    def test_damage_alone_is_an_error(self, save, tmp_path):
        _flip(save('epoch_1.pth', 1.0))
        with pytest.raises(UserError, match=r'epoch_1\.pth: .*damaged.*--resume PATH'):
            newest_intact(tmp_path)

    def test_a_pointer_to_nothing_is_an_error(self, tmp_path):
        (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
        with pytest.raises(UserError, match=r'/nowhere/epoch_3\.pth.*does not exist'):
            newest_intact(tmp_path)

    def test_those_of_an_earlier_run_can_be_left_out(self, save, tmp_path):
        save('epoch_9.pth', 100.0)
        assert newest_intact(tmp_path, since=150.0) == (None, [])
        new = save('epoch_1.pth', 200.0)
        assert newest_intact(tmp_path, since=150.0) == (new, [])

    def test_only_a_runs_own_count(self, save, tmp_path):
        for name in (
            'best_mAP_epoch_3.pth',
            'epoch_1-0a1b2c3d.pth',
            '.epoch_2.pth.saving',
            'a.pth',
        ):
            (tmp_path / name).touch()
        assert saved_checkpoints(tmp_path) == []


@pytest.fixture(scope='module')
def trained(warmed, tmp_path_factory) -> Path:
    """A run of 12 steps, with its checkpoints of both epochs."""
    folder = tmp_path_factory.mktemp('resume') / 'run'
    tiny.tiny_runner(folder, **OPTIONS).train()
    return folder


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    return shutil.copytree(trained, tmp_path / 'run')


def _resumed(folder: Path, load_from: str | None = None, **options) -> tuple[int, str]:
    """Where a run begins, and what it says until then."""
    cfg = tiny.tiny_config(folder, steps=18, **OPTIONS | dict(resume=True) | options)
    cfg.load_from = load_from
    runner = tiny.build_runner(cfg)
    said, start = [], []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())
    runner.logger.addHandler(listener)
    runner.register_hook(_Stop(start), priority='HIGHEST')
    try:
        with pytest.raises(StopIteration):
            runner.train()
    finally:
        runner.logger.removeHandler(listener)
    return start[0], '\n'.join(said)


class _Stop(tiny.Hook):
    def __init__(self, start: list[int]) -> None:
        self.start = start

    def before_train(self, runner) -> None:
        self.start.append(runner.iter)
        raise StopIteration


def test_a_run_goes_on_from_the_newest(copy):
    start, said = _resumed(copy)
    assert start == 12
    assert 'Not resumed' not in said
    assert f'Resuming from {copy}/epoch_2.pth' in said


def test_a_run_reads_the_one_that_it_resumes_from_once(copy, monkeypatch):
    read = []

    def reading(path, *arguments):
        read.append(Path(path).name)
        return read_checkpoint(path, *arguments)

    monkeypatch.setattr('poolformer_dense.runner.loading.read_checkpoint', reading)
    assert _resumed(copy)[0] == 12
    assert read == ['epoch_2.pth']


def test_a_date_in_the_future_wins_no_longer_than_until_the_next_save(copy):
    checkpoint = torch.load(copy / 'epoch_1.pth', weights_only=False)
    ahead = time.time() + 1e6
    checkpoint['meta']['saved_at'] = ahead
    files.save_sealed(checkpoint, copy / 'epoch_9.pth')
    assert newest_intact(copy)[0] == copy / 'epoch_9.pth'
    tiny.tiny_runner(copy, resume=True, **OPTIONS).train()  # the second epoch again
    assert newest_intact(copy)[0] == copy / 'epoch_2.pth'
    tiny.tiny_runner(copy, **OPTIONS).train()  # from the beginning
    saved_at = torch.load(copy / 'epoch_1.pth', weights_only=False)['meta']['saved_at']
    assert newest_intact(copy)[0] == copy / 'epoch_2.pth'
    assert saved_at > ahead


def test_a_run_falls_back_and_says_so(copy):
    _flip(copy / 'epoch_2.pth')
    start, said = _resumed(copy)
    assert start == 6
    assert f'Skipped checkpoint {copy}/epoch_2.pth: ' in said


def test_a_run_without_an_intact_one_ends_with_a_remedy(copy):
    for path in copy.glob('epoch_*.pth'):
        _flip(path)
    with pytest.raises(UserError, match='--resume PATH'):
        _resumed(copy)


def test_a_new_run_begins_at_the_beginning(copy):
    assert _resumed(copy, resume=False)[0] == 0
    assert _resumed(copy / 'empty')[0] == 0


class TestSeveralTrainingsInOneFolder:
    """The first left two epochs; the second begins at iteration 0."""

    def test_the_second_says_so(self, copy):
        start, said = _resumed(copy, resume=False)
        assert start == 0
        assert 'holds checkpoints of another training, up to epoch_2.pth (iteration 12)' in said
        assert f'--resume {copy}/epoch_2.pth' in said

    def test_nothing_is_said_or_left_where_there_is_no_other(self, tmp_path):
        assert 'another training' not in _resumed(tmp_path / 'new', resume=False)[1]
        assert not (tmp_path / 'new/last_start').exists()

    def test_a_later_resume_takes_the_seconds(self, copy):
        tiny.tiny_runner(copy, steps=6, **OPTIONS).train()
        start, said = _resumed(copy)
        assert start == 6
        assert f'Resuming from {copy}/epoch_1.pth' in said

    def test_a_later_resume_never_takes_the_firsts(self, copy):
        _resumed(copy, resume=False)
        match = f'saved no checkpoint; .* earlier one: .*--resume {copy}/epoch_2.pth'
        with pytest.raises(UserError, match=match):
            _resumed(copy)
        tiny.tiny_runner(copy, steps=6, **OPTIONS).train()
        _flip(copy / 'epoch_1.pth')
        with pytest.raises(UserError, match='saved no checkpoint'):
            _resumed(copy)

    def test_the_first_is_continued_by_its_name_and_then_by_itself(self, copy):
        _resumed(copy, resume=False)
        assert _resumed(copy, load_from=str(copy / 'epoch_2.pth'))[0] == 12
        assert _resumed(copy)[0] == 12

    def test_a_folder_that_was_emptied_is_as_new(self, copy):
        _resumed(copy, resume=False)
        for path in copy.glob('epoch_*.pth'):
            path.unlink()
        (copy / 'last_checkpoint').unlink()
        assert _resumed(copy)[0] == 0

    def test_going_back_is_a_new_start(self, copy):
        assert _resumed(copy, load_from=os.path.relpath(copy / 'epoch_1.pth'))[0] == 6
        assert _resumed(copy)[0] == 6

    def test_a_moved_folder_keeps_its_start(self, copy):
        _resumed(copy, load_from=str(copy / 'epoch_1.pth'))
        moved = copy.rename(copy.with_name('moved'))
        assert _resumed(moved)[0] == 6

    @pytest.mark.parametrize('note', ['', '{', '[]', '{"before": null}'])
    def test_an_unreadable_note_is_none(self, copy, note):
        (copy / 'last_start').write_text(note)
        assert _resumed(copy)[0] == 12

    def test_ranks_agree(self, copy):
        def start() -> int:
            return _resumed(copy, launcher='pytorch', ranks=2)[0]

        _resumed(copy, load_from=str(copy / 'epoch_1.pth'))
        assert [c.result() for c in tiny.fork_ranks(2, copy / 'ranks', start)] == [6, 6]


class TestRestartByTorchrun:
    @pytest.fixture
    def restarted(self, monkeypatch):
        monkeypatch.setenv('TORCHELASTIC_RESTART_COUNT', '1')

    def test_goes_on_although_the_command_says_begin(self, copy, restarted):
        assert _resumed(copy, resume=False)[0] == 12

    def test_goes_on_although_the_command_names_an_older_one(self, copy, restarted):
        assert _resumed(copy, load_from=str(copy / 'epoch_1.pth'))[0] == 12

    def test_leaves_an_earlier_runs_checkpoints_alone(self, copy, restarted, monkeypatch):
        saved_at = torch.load(copy / 'epoch_2.pth', weights_only=False)['meta']['saved_at']
        monkeypatch.setenv('LAUNCH_TIME', str(int(saved_at) + 1))
        assert _resumed(copy, resume=False)[0] == 0
        assert _resumed(copy, load_from=str(copy / 'epoch_1.pth'))[0] == 6

    def test_begins_again_if_nothing_was_saved(self, tmp_path, restarted):
        assert _resumed(tmp_path / 'new', resume=False)[0] == 0


def test_two_ranks_agree(copy):
    _flip(copy / 'epoch_2.pth')

    def start() -> int:
        return _resumed(copy, launcher='pytorch', ranks=2)[0]

    # The rank that looks is the first; the other must follow even if it sees other files.
    assert [c.result() for c in tiny.fork_ranks(2, copy / 'ranks', start)] == [6, 6]
