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

from backbones.checkpoints import CheckpointError, read_checkpoint
from poolformer_dense import files
from poolformer_dense.errors import UserError
from poolformer_dense.runner.resume import Start, newest_intact, saved_checkpoints
from tests.poolformer_dense.runner import tiny

OPTIONS = dict(checkpoint=dict(type='AtomicCheckpointHook', minutes=0))


@pytest.fixture
def save(tmp_path) -> Callable[..., Path]:
    """Write a checkpoint of nothing into tmp_path."""

    def write(name: str, iteration: int, run: str | None = None, **more) -> Path:
        files.save_sealed(content(iteration, run) | more, tmp_path / name)
        return tmp_path / name

    return write


def content(iteration: int, run: str | None = None) -> dict:
    """A checkpoint of nothing."""
    return dict(
        meta=dict(iter=iteration, epoch=0, run=run),
        optimizer={},
        message_hub=dict(log_scalars={}, runtime_info={}, resumed_keys={}),
        state_dict=dict(w=torch.zeros(300)),
    )


def found(folder: Path, start: Start | None = None) -> Path | None:
    """The file that `newest_intact` finds."""
    saved, _ = newest_intact(folder, start)
    return saved and saved.path


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


class TestNewestIntact:
    def test_iterations_decide(self, save, tmp_path):
        # Names and dates say something else after a copy, or by a clock that was wrong.
        newest = save('epoch_2.pth', 300)
        for name, iteration in (('epoch_9.pth', 200), ('iter_70.pth', 100)):
            os.utime(save(name, iteration), (4e9, 4e9))
        os.utime(newest, (0, 0))
        assert found(tmp_path) == newest

    def test_older_ones_are_not_read(self, save, tmp_path):
        first, second, third = (save(f'epoch_{n}.pth', n) for n in (1, 2, 3))
        _flip(first)
        _flip(third)
        read = []

        def reading(path: Path) -> None:
            read.append(path)
            read_checkpoint(path)

        saved, [line] = newest_intact(tmp_path, read=reading)
        assert (saved.path, read) == (second, [third, second])
        assert line.startswith(f'{third}: ')

    def test_last_checkpoint_is_no_more_than_a_hint(self, save, tmp_path):
        old, new = save('epoch_1.pth', 1), save('epoch_2.pth', 2)
        (tmp_path / 'last_checkpoint').write_text(str(old))
        assert found(tmp_path) == new
        (tmp_path / 'last_checkpoint').write_bytes(b'')
        assert found(tmp_path) == new

    def test_it_leads_to_another_folder(self, save, tmp_path):
        newest = save('epoch_1.pth', 1)
        (tmp_path / 'work').mkdir()
        (tmp_path / 'work/last_checkpoint').write_text(str(newest))
        assert found(tmp_path / 'work') == newest

    def test_a_folder_can_be_moved(self, save, tmp_path):
        (tmp_path / 'there').mkdir()
        save('there/model.pth', 1)
        (tmp_path / 'there/last_checkpoint').write_text('/nowhere/before/model.pth')
        assert found(tmp_path / 'there') == tmp_path / 'there/model.pth'

    @pytest.mark.parametrize('damage', ['flip', 'cut', 'empty'])
    def test_a_damaged_one_is_passed_over_by_name(self, save, tmp_path, damage):
        old, new = save('epoch_1.pth', 1), save('epoch_2.pth', 2)
        if damage == 'flip':
            _flip(new)
        else:
            os.truncate(new, 0 if damage == 'empty' else 700)
        saved, [line] = newest_intact(tmp_path)
        assert saved.path == old
        assert re.match(f'{new}: .*(truncated|damaged)', line)

    def test_weights_alone_are_passed_over(self, save, tmp_path):
        files.save_sealed(dict(state_dict={}), tmp_path / 'epoch_2.pth')
        old = save('epoch_1.pth', 1)
        saved, passed_over = newest_intact(tmp_path)
        assert saved.path == old
        assert passed_over == [f'{tmp_path}/epoch_2.pth: it holds only weights']

    def test_files_of_mmengine_count_unless_damaged(self, tmp_path):
        def old(name: str, iteration: int) -> Path:
            checkpoint = content(iteration)
            del checkpoint['meta']['run']
            torch.save(checkpoint, tmp_path / name)
            return tmp_path / name

        first, second = old('epoch_1.pth', 1), old('epoch_2.pth', 2)
        assert found(tmp_path) == second
        data = second.read_bytes()
        second.write_bytes(data.replace(b'\0' * 100, b'\0' * 99 + b'\1', 1))
        saved, skipped = newest_intact(tmp_path)
        assert (saved.path, skipped) == (first, [f'{second}: damaged'])

    @pytest.mark.parametrize(
        ('place', 'value'),
        [
            ('meta', []),
            ('meta', None),
            ('meta.iter', '12'),
            ('meta.iter', -1),
            ('meta.iter', True),
            ('meta.iter', None),
            ('meta.epoch', 1.5),
            ('meta.run', 7),
            ('meta.seed', 'x'),
            ('optimizer', 'x'),
            ('optimizer.param_groups', 'x'),
            ('optimizer.param_groups', [dict(params=3)]),
            ('message_hub', []),
            ('message_hub.log_scalars', []),
            ('state_dict', [1]),
            ('param_schedulers', 'x'),
            ('param_schedulers', [1]),
            ('run_state', [1]),
            ('run_state', dict(position=[])),
            ('run_state', dict(position=dict(epoch=1, batch=0, samples_per_step='x'))),
        ],
    )
    def test_an_entry_of_another_type_is_passed_over_by_name(self, save, tmp_path, place, value):
        old, new = save('epoch_1.pth', 1), save('epoch_2.pth', 2)
        checkpoint = content(2)
        *above, last = place.split('.')
        (checkpoint[above[0]] if above else checkpoint)[last] = value
        files.save_sealed(checkpoint, new)
        saved, [line] = newest_intact(tmp_path)
        assert saved.path == old
        assert line.startswith(f'{new}: its {place}')

    def test_nothing_is_not_an_error(self, tmp_path):
        (tmp_path / 'best_mAP_epoch_3.pth').touch()
        assert newest_intact(tmp_path) == (None, [])
        assert newest_intact(tmp_path / 'missing') == (None, [])

    def test_damage_alone_is_an_error(self, save, tmp_path):
        _flip(save('epoch_1.pth', 1))
        with pytest.raises(UserError, match=r'epoch_1\.pth: .*damaged.*--resume PATH'):
            newest_intact(tmp_path)

    def test_a_pointer_to_nothing_is_an_error(self, tmp_path):
        (tmp_path / 'last_checkpoint').write_text('/nowhere/epoch_3.pth')
        with pytest.raises(UserError, match=r'/nowhere/epoch_3\.pth.*does not exist'):
            newest_intact(tmp_path)

    def test_those_of_another_training_can_be_left_out(self, save, tmp_path):
        save('epoch_9.pth', 100)
        save('epoch_8.pth', 90, 'first')
        assert found(tmp_path, Start('second')) is None
        new = save('epoch_1.pth', 20, 'second')
        assert found(tmp_path, Start('second')) == new

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
        with pytest.raises(_Stopped):
            runner.train()
    finally:
        runner.logger.removeHandler(listener)
    return start[0], '\n'.join(said)


class _Stopped(UserError):
    """Ends a run at once: after other errors it waits for the end of workers."""


class _Stop(tiny.Hook):
    def __init__(self, start: list[int]) -> None:
        self.start = start

    def before_train(self, runner) -> None:
        self.start.append(runner.iter)
        raise _Stopped


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


def test_a_date_in_the_future_wins_nothing(copy, monkeypatch):
    # As where the clock of a host was wrong for a while: of the first epoch's save.
    path = copy / 'epoch_1.pth'
    checkpoint = torch.load(path, weights_only=False)
    checkpoint['meta'] |= dict(saved_at=4e9, time='20990101_000000')
    files.save_sealed(checkpoint, path)
    os.utime(path, (4e9, 4e9))
    assert _resumed(copy)[0] == 12
    monkeypatch.setattr(time, 'time', lambda: 1e9)
    tiny.tiny_runner(copy, steps=18, resume=True, **OPTIONS).train()
    assert found(copy) == copy / 'epoch_3.pth'


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

    def test_nothing_is_said_where_there_is_no_other(self, tmp_path):
        assert 'another training' not in _resumed(tmp_path / 'new', resume=False)[1]

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

    @pytest.mark.parametrize(
        'note',
        [
            '',
            '{',
            '[]',
            '{"before": 1.0, "resumed_from": null}',
            '{"run": 1, "resumed_from": null, "launches": []}',
        ],
    )
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
        # Killed before it began to train: what is noted there is the first.
        monkeypatch.setenv('LAUNCH_ID', 'second')
        assert _resumed(copy, resume=False)[0] == 0
        tiny.tiny_runner(copy, steps=6, **OPTIONS).train()
        assert _resumed(copy, resume=False)[0] == 6
        assert _resumed(copy, load_from=str(copy / 'epoch_2.pth'), resume=False)[0] == 6

    def test_begins_again_if_nothing_was_saved(self, tmp_path, restarted):
        assert _resumed(tmp_path / 'new', resume=False)[0] == 0


def _says(folder: Path, **changes) -> tuple[tiny.Runner, str]:
    """Train on from a folder's last checkpoint; what the run says."""
    cfg = tiny.tiny_config(folder, **OPTIONS | dict(resume=True, steps=18) | changes)
    runner = tiny.build_runner(cfg)
    return runner, tiny.train_listening(runner)


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
@pytest.mark.parametrize('steps', [6, 12])
def test_a_run_with_nothing_left_says_so(runs, loop, steps):
    tiny.tiny_runner(runs / 'run', loop=loop, **OPTIONS).train()
    runner, said = _says(runs / 'run', loop=loop, steps=steps)
    assert runner.iter == 12
    key = dict(epoch='max_epochs', iter='max_iters')[loop]
    [line] = [line for line in said.splitlines() if 'Nothing is left to do' in line]
    done = dict(epoch=2, iter=12)[loop]
    last = dict(epoch=steps // 6, iter=steps)[loop]
    assert f'has {done} {key[4:]} done, and train_cfg.{key} is {last}' in line
    assert f'above {done}' in line


def test_a_run_with_something_left_does_not(copy):
    assert 'Nothing is left' not in _says(copy)[1]


def test_another_batch_size_is_said(copy, monkeypatch):
    monkeypatch.setattr(tiny, 'BATCH', 4)
    said = _says(copy, length=24)[1]
    assert 'saved with 2 samples in an iteration, this run has 4: it resumes at the same' in said
    assert 'samples in an iteration' not in _says(copy, length=24)[1]


def test_the_first_of_two_with_an_entry_of_another_type(copy):
    checkpoint = torch.load(copy / 'epoch_2.pth', weights_only=False)
    files.save_sealed(checkpoint | dict(meta=['epoch', 2]), copy / 'epoch_2.pth')
    start, said = _resumed(copy)
    assert start == 6
    assert 'epoch_2.pth: its meta is' in said
    with pytest.raises(CheckpointError, match=r'epoch_2\.pth can not be resumed from: its meta is'):
        _resumed(copy, load_from=str(copy / 'epoch_2.pth'))


@pytest.mark.parametrize('variable', ['TORCHELASTIC_RESTART_COUNT', 'LAUNCH_ID'])
def test_a_restart_is_one_on_all_ranks(copy, monkeypatch, variable):
    # torchrun counts the failures of each node alone; a node that is replaced has none.
    monkeypatch.setenv('LAUNCH_ID', 'of node 1')
    tiny.tiny_runner(copy, steps=6, **OPTIONS).train()

    def start() -> int:
        monkeypatch.delenv('LAUNCH_ID')
        if variable == 'LAUNCH_ID':
            monkeypatch.setenv('LAUNCH_ID', f'of node {os.environ["RANK"]}')
        elif os.environ['RANK'] == '1':
            monkeypatch.setenv(variable, '1')
        return _resumed(copy, launcher='pytorch', ranks=2, resume=False)[0]

    assert [c.result() for c in tiny.fork_ranks(2, copy / 'ranks', start)] == [6, 6]


def test_two_ranks_agree(copy):
    _flip(copy / 'epoch_2.pth')

    def start() -> int:
        return _resumed(copy, launcher='pytorch', ranks=2)[0]

    # The rank that looks is the first; the other must follow even if it sees other files.
    assert [c.result() for c in tiny.fork_ranks(2, copy / 'ranks', start)] == [6, 6]
