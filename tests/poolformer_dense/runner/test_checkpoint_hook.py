"""Checkpoints: whole or not there, and none deleted too early."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook

from backbones.checkpoints import seal_holds
from poolformer_dense import files
from poolformer_dense.cli import run_tool
from poolformer_dense.errors import UserError
from poolformer_dense.runner.checkpoint_hook import AtomicCheckpointHook
from tests.poolformer_dense.runner import tiny

ATOMIC = dict(type='AtomicCheckpointHook', minutes=0)


@pytest.fixture
def content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    weights = {str(i): torch.randn(i * 37, 11, generator=generator) for i in range(4)}
    return dict(state_dict=weights, meta=dict(iter=3, name='ü'))


@pytest.fixture
def whole(content, tmp_path) -> bytes:
    """A sealed file's bytes."""
    files.save_sealed(content, tmp_path / 'whole.pth')
    return (tmp_path / 'whole.pth').read_bytes()


def _names(folder: Path) -> list[str]:
    """The files of a work directory but for the logs, the config, the lock and the start's note."""
    found = [p for p in folder.iterdir() if p.is_file() and p.suffix not in ('.py', '.lock')]
    return sorted(p.name for p in found if p.name != 'last_start')


def _fail_once(monkeypatch, at: int, error: OSError) -> None:
    """Make the `at`-th save of a checkpoint fail half-way."""
    saves = []
    write = files._Sealing.write

    def failing(self, data):
        if self not in saves:
            saves.append(self)
        if len(saves) == at and self._file.tell() > 1000:
            self.failure = error
            raise error
        return write(self, data)

    monkeypatch.setattr(files._Sealing, 'write', failing)


@pytest.fixture
def full_disk() -> OSError:
    return OSError(errno.ENOSPC, 'No space left on device')


class TestSealed:
    @pytest.mark.parametrize('mmap', [False, True])
    def test_torch_reads_it(self, content, tmp_path, mmap):
        path = tmp_path / 'a.pth'
        files.save_sealed(content, path)
        read = torch.load(path, weights_only=True, mmap=mmap)
        assert tiny.checksum(read) == tiny.checksum(content)
        assert seal_holds(path) is True

    def test_a_copy_keeps_its_seal(self, whole, tmp_path):
        copy = tmp_path / 'copy.pth'
        copy.write_bytes(whole)
        assert seal_holds(copy) is True

    def test_every_truncation_and_bit_flip_near_the_ends_shows(self, whole, tmp_path):
        path, size = tmp_path / 'damaged.pth', len(whole)
        ends = [*range(120), *range(size - 200, size)]
        for place in ends:
            path.write_bytes(whole[:place])
            assert seal_holds(path) is False, f'cut at {place} of {size}'
            bit = place % 8
            flipped = bytearray(whole)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            assert seal_holds(path) is False, f'bit {bit} of byte {place} of {size}'

    def test_damage_anywhere_shows(self, whole, tmp_path):
        draw = random.Random(1)
        path = tmp_path / 'damaged.pth'
        for _ in range(100):
            damaged = bytearray(whole)
            first, length = draw.randrange(len(whole)), draw.choice([1, 4, 512])
            part = slice(first, first + length)
            damaged[part] = bytes(byte ^ draw.randrange(1, 256) for byte in damaged[part])
            path.write_bytes(damaged)
            assert seal_holds(path) is False
            path.write_bytes(whole[: draw.randrange(len(whole))])
            assert seal_holds(path) is False

    def test_other_files_have_no_seal(self, content, tmp_path):
        torch.save(content, tmp_path / 'plain.pth')
        (tmp_path / 'text').write_text('{"a": 1}')
        assert seal_holds(tmp_path / 'plain.pth') is None
        assert seal_holds(tmp_path / 'text') is None

    def test_a_failed_save_leaves_what_was_there(
        self, content, whole, tmp_path, monkeypatch, full_disk
    ):
        path = tmp_path / 'whole.pth'
        _fail_once(monkeypatch, 1, full_disk)
        with pytest.raises(OSError, match='No space left'):
            files.save_sealed(dict(other=torch.zeros(3000)), path)
        assert path.read_bytes() == whole
        assert _names(tmp_path) == ['whole.pth']

    @pytest.mark.parametrize('step', ['_Sealing.write', '_Sealing.close', 'os.fsync', 'os.replace'])
    def test_a_kill_leaves_the_old_file_and_what_can_be_removed(
        self, content, whole, tmp_path, monkeypatch, step
    ):
        path = tmp_path / 'whole.pth'
        monkeypatch.setattr(
            f'poolformer_dense.files.{step}',
            lambda *_: signal.raise_signal(signal.SIGKILL),
        )
        child = tiny.fork(tmp_path / 'result', files.save_sealed, dict(new=torch.zeros(9)), path)
        assert child.wait() == -signal.SIGKILL
        assert path.read_bytes() == whole
        assert files.remove_unfinished(tmp_path) == ['.whole.pth.saving']
        assert _names(tmp_path) == ['whole.pth']

    def test_a_link_in_a_received_folder_leads_nowhere(self, content, tmp_path):
        victim = tmp_path / 'victim'
        victim.write_text('precious')
        (tmp_path / '.new.pth.saving').symlink_to(victim)
        files.save_sealed(content, tmp_path / 'new.pth')
        assert victim.read_text() == 'precious'
        assert seal_holds(tmp_path / 'new.pth') is True

    def test_saving_holds_no_second_copy(self, tmp_path):
        def growth() -> int:
            tensors = [torch.zeros(1 << 22) for _ in range(8)]  # 16 MiB each

            def peak() -> int:
                status = Path('/proc/self/status').read_text()
                return int(status.split('VmHWM:')[1].split()[0]) // 1024

            torch.save(torch.zeros(9), tmp_path / 'warm.pth')
            before = peak()
            files.save_sealed(tensors, tmp_path / 'large.pth')
            return peak() - before

        assert tiny.fork(tmp_path / 'result', growth).result() < 24  # MiB, of 128


def test_the_previous_one_stays_until_the_new_one_is_complete(runs, monkeypatch):
    events = []
    replace, remove = os.replace, LocalBackend.remove
    monkeypatch.setattr(
        os, 'replace', lambda a, b: (events.append(f'complete {Path(b).name}'), replace(a, b))[1]
    )
    monkeypatch.setattr(
        LocalBackend,
        'remove',
        lambda self, path: (events.append(f'remove {Path(path).name}'), remove(self, path))[1],
    )
    tiny.tiny_runner(runs, steps=18, checkpoint=ATOMIC | dict(max_keep_ckpts=1)).train()
    saved = [e for e in events if e.split()[1].startswith(('epoch', 'last_ch'))]
    assert saved == [
        'complete epoch_1.pth', 'complete last_checkpoint',
        'complete epoch_2.pth', 'complete last_checkpoint', 'remove epoch_1.pth',
        'complete epoch_3.pth', 'complete last_checkpoint', 'remove epoch_2.pth',
    ]  # fmt: skip
    assert _names(runs) == ['epoch_3.pth', 'last_checkpoint']
    assert (runs / 'last_checkpoint').read_text() == str(runs / 'epoch_3.pth')
    assert seal_holds(runs / 'epoch_3.pth') is True


@pytest.mark.parametrize('loop', ['epoch', 'iter'])
def test_names_are_the_ecosystems(runs, loop):
    names = {}
    for kind in ('CheckpointHook', 'AtomicCheckpointHook'):
        options = dict(type=kind, max_keep_ckpts=2, save_best='tiny/score', rule='less')
        folder = runs / kind
        cfg = tiny.tiny_config(folder, loop=loop, steps=18, checkpoint=options)
        if kind == 'CheckpointHook':
            cfg.default_hooks.checkpoint.pop('minutes', None)
        tiny.build_runner(cfg).train()
        names[kind] = _names(folder)
    assert names['AtomicCheckpointHook'] == names['CheckpointHook']


def test_a_full_disk_fails_the_save_and_not_the_run(runs, monkeypatch, full_disk, caplog):
    _fail_once(monkeypatch, 2, full_disk)
    runner = tiny.tiny_runner(runs, steps=24, checkpoint=ATOMIC | dict(max_keep_ckpts=1))
    seen = []

    class Look(CheckpointHook):
        def before_train_epoch(self, runner):
            seen.append((_names(runs), Path((runs / 'last_checkpoint').read_text()).name))

        def after_train_epoch(self, runner):
            pass

    monkeypatch.setattr(Look, 'before_train', lambda *_: None)
    monkeypatch.setattr(Look, 'before_train_epoch', lambda *_: seen.append(_names(runs)))
    runner.register_hook(Look())
    runner.logger.addHandler(caplog.handler)
    runner.train()
    after_failure = ['epoch_1.pth', 'last_checkpoint']
    assert seen == [[], after_failure, after_failure, ['epoch_3.pth', 'last_checkpoint']]
    assert _names(runs) == ['epoch_4.pth', 'last_checkpoint']
    assert 'epoch_2.pth could not be saved ([Errno 28] No space left on device)' in caplog.text
    assert runner.message_hub.get_info('keep_ckpt_ids') == [4]


def test_a_failed_best_keeps_the_previous_best(runs, monkeypatch, full_disk):
    # Saves: epoch 1, best 1, epoch 1 again, epoch 2, best 2.
    _fail_once(monkeypatch, 5, full_disk)
    options = ATOMIC | dict(max_keep_ckpts=1, save_best='tiny/score', rule='greater')
    scores = iter([1.0, 2.0, 0.0])
    monkeypatch.setattr(tiny.TinyMetric, 'compute_metrics', lambda *_: dict(score=next(scores)))
    runner = tiny.tiny_runner(runs, checkpoint=options, steps=18)
    with pytest.raises(
        UserError, match=r'best weights, of iteration 12, are not on disk .*No space'
    ):
        runner.train()
    assert _names(runs) == ['best_tiny_score_epoch_1.pth', 'epoch_3.pth', 'last_checkpoint']
    assert runner.message_hub.get_info('best_score') == 1.0
    assert 'run_state' in torch.load(runs / 'best_tiny_score_epoch_1.pth', weights_only=False)


def test_a_failed_best_is_forgotten_with_a_better_one(runs, monkeypatch, full_disk):
    _fail_once(monkeypatch, 5, full_disk)
    options = ATOMIC | dict(max_keep_ckpts=1, save_best='tiny/score', rule='greater')
    scores = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(tiny.TinyMetric, 'compute_metrics', lambda *_: dict(score=next(scores)))
    tiny.tiny_runner(runs, checkpoint=options, steps=18).train()
    assert _names(runs) == ['best_tiny_score_epoch_3.pth', 'epoch_3.pth', 'last_checkpoint']


def test_what_can_not_be_removed_does_not_end_the_training(runs, monkeypatch):
    def refuse(*_) -> None:
        raise OSError(errno.EIO, 'Input/output error')

    monkeypatch.setattr(LocalBackend, 'remove', refuse)
    options = ATOMIC | dict(max_keep_ckpts=1, save_best='tiny/score', rule='greater')
    scores = iter([1.0, 2.0])
    monkeypatch.setattr(tiny.TinyMetric, 'compute_metrics', lambda *_: dict(score=next(scores)))
    tiny.tiny_runner(runs, checkpoint=options).train()
    assert {'epoch_1.pth', 'epoch_2.pth', 'best_tiny_score_epoch_2.pth'} <= set(_names(runs))


def test_a_failed_save_does_not_hold_up_the_other_rank(runs, monkeypatch, full_disk):
    _fail_once(monkeypatch, 1, full_disk)

    def train() -> dict[str, str]:
        runner = tiny.tiny_runner(
            runs / 'run', launcher='pytorch', ranks=2, checkpoint=ATOMIC | dict(max_keep_ckpts=1)
        )
        runner.train()
        return runner.message_hub.get_info('keep_ckpt_ids')

    kept = [child.result() for child in tiny.fork_ranks(2, runs / 'ranks', train)]
    assert kept == [[2], [2]]
    assert _names(runs / 'run') == ['epoch_2.pth', 'last_checkpoint']


class TestByTime:
    @pytest.mark.parametrize('loop', ['epoch', 'iter'])
    def test_saves_after_any_iteration_and_keeps_one(self, runs, loop, monkeypatch):
        complete = []
        replace = os.replace
        monkeypatch.setattr(
            os, 'replace', lambda a, b: (complete.append(Path(b).name), replace(a, b))[1]
        )
        options = ATOMIC | dict(minutes=1e-9, max_keep_ckpts=1)
        tiny.tiny_runner(runs, loop=loop, checkpoint=options).train()
        saved = {name for name in complete if name.startswith('iter_')}
        assert saved == {f'iter_{i}.pth' for i in range(1, 13)}
        last = 'epoch_2.pth' if loop == 'epoch' else 'iter_12.pth'
        assert _names(runs) == [last, 'last_checkpoint']

    def test_all_ranks_follow_the_first(self, runs, monkeypatch):
        def train() -> int:
            # The second rank's clock runs fast: it would save at every step.
            if os.environ['RANK'] == '1':
                monkeypatch.setattr(time, 'monotonic', iter(range(0, 10**9, 10**4)).__next__)
            options = ATOMIC | dict(minutes=5)
            tiny.tiny_runner(runs / 'run', launcher='pytorch', ranks=2, checkpoint=options).train()
            return len(list((runs / 'run').glob('iter_*.pth')))

        assert [c.result() for c in tiny.fork_ranks(2, runs / 'ranks', train)] == [0, 0]


def test_what_a_killed_save_left_goes_at_the_next_start(runs):
    (runs / '.epoch_7.pth.saving').write_bytes(b'PK')
    tiny.tiny_runner(runs, steps=6, checkpoint=ATOMIC).train()
    assert _names(runs) == ['epoch_1.pth', 'last_checkpoint']


def test_a_kill_between_complete_and_deleted_leaves_nothing_in_the_end(runs, monkeypatch):
    options = dict(checkpoint=ATOMIC | dict(max_keep_ckpts=1))

    def killed() -> None:
        monkeypatch.setattr(LocalBackend, 'remove', lambda *_: signal.raise_signal(signal.SIGKILL))
        tiny.tiny_runner(runs / 'run', **options).train()

    assert tiny.fork(runs / 'result', killed).wait() == -signal.SIGKILL
    assert _names(runs / 'run') == ['epoch_1.pth', 'epoch_2.pth', 'last_checkpoint']
    tiny.tiny_runner(runs / 'run', steps=18, resume=True, **options).train()
    assert _names(runs / 'run') == ['epoch_3.pth', 'last_checkpoint']


def test_files_of_the_same_name_in_another_folder_are_left_alone(runs):
    options = dict(checkpoint=ATOMIC | dict(max_keep_ckpts=1))
    tiny.tiny_runner(runs / 'one', **options).train()
    (runs / 'two').mkdir()
    (runs / 'two/epoch_2.pth').write_bytes(b'of another run')
    cfg = tiny.tiny_config(runs / 'two', steps=18, resume=True, **options)
    cfg.load_from = str(runs / 'one/epoch_2.pth')
    tiny.build_runner(cfg).train()
    assert _names(runs / 'two') == ['epoch_2.pth', 'epoch_3.pth', 'last_checkpoint']


def test_wrong_arguments_show_at_once():
    with pytest.raises(TypeError, match="takes no 'max_keep'"):
        AtomicCheckpointHook(max_keep=1)
    with pytest.raises(ValueError, match='minutes'):
        AtomicCheckpointHook(minutes=-1)


# No space, a quota, a broken disk, a server that has forgotten a file, a limit, a lost right.
ERRORS = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE, errno.EFBIG, errno.EROFS]


class TestTheLastSave:
    @pytest.fixture
    def pauses(self, monkeypatch) -> list[float]:
        """What was waited for, without waiting."""
        waited = []
        monkeypatch.setattr(time, 'sleep', waited.append)
        return waited

    def _fail(self, monkeypatch, error: OSError, times: int) -> None:
        """Make saves fail from the second on."""
        names = []
        save = files.save_sealed

        def failing(checkpoint, path):
            names.append(Path(path).name)
            if 1 < len(names) <= 1 + times:
                raise error
            save(checkpoint, path)

        monkeypatch.setattr('poolformer_dense.runner.saving.save_sealed', failing)

    @pytest.mark.parametrize('loop', ['epoch', 'iter'])
    def test_is_tried_again(self, runs, monkeypatch, full_disk, pauses, loop):
        self._fail(monkeypatch, full_disk, 2)
        tiny.tiny_runner(runs, loop=loop, checkpoint=ATOMIC | dict(max_keep_ckpts=1)).train()
        name = 'epoch_2.pth' if loop == 'epoch' else 'iter_12.pth'
        assert _names(runs) == [name, 'last_checkpoint']
        assert pauses == [1.0, 5.0]
        meta = torch.load(runs / name, weights_only=False)['meta']
        assert meta['iter'] == 12
        assert meta['epoch'] == (2 if loop == 'epoch' else 0)

    def test_is_an_error_if_it_can_not_be_made(self, runs, monkeypatch, full_disk, pauses):
        self._fail(monkeypatch, full_disk, 99)
        runner = tiny.tiny_runner(runs, checkpoint=ATOMIC | dict(max_keep_ckpts=1))
        match = r'iteration 12, the last, are not on disk .*No space left.*epoch_1.pth is the last'
        with pytest.raises(UserError, match=match):
            runner.train()
        assert len(pauses) > 1
        assert _names(runs) == ['epoch_1.pth', 'last_checkpoint']

    def test_of_all_ranks_is_an_error(self, runs, monkeypatch, full_disk, pauses):
        self._fail(monkeypatch, full_disk, 99)

        def train() -> None:
            options = dict(launcher='pytorch', ranks=2, checkpoint=ATOMIC)
            with pytest.raises(UserError, match='are not on disk'):
                tiny.tiny_runner(runs / 'run', **options).train()

        for child in tiny.fork_ranks(2, runs / 'ranks', train):
            child.result()

    def test_between_the_intervals_is_made_up_for(self, runs, monkeypatch, full_disk, pauses):
        # No save is due at the end, but the last one that was due has failed.
        self._fail(monkeypatch, full_disk, 1)
        options = ATOMIC | dict(interval=2, save_last=False)
        tiny.tiny_runner(runs, steps=30, checkpoint=options).train()
        assert _names(runs) == ['epoch_2.pth', 'iter_30.pth', 'last_checkpoint']
        assert torch.load(runs / 'iter_30.pth', weights_only=False)['meta']['epoch'] == 5

    @pytest.mark.parametrize('number', ERRORS)
    @pytest.mark.parametrize('step', ['fsync', 'replace'])
    def test_ends_with_code_2_whatever_the_reason(
        self, runs, monkeypatch, pauses, capsys, number, step
    ):
        """Also where the disk gives way at the lowest level, at the end alone."""

        def refuse(*_) -> None:
            raise OSError(number, os.strerror(number))

        class Break(tiny.Hook):
            def before_train_epoch(self, runner) -> None:
                if runner.epoch == 1:
                    monkeypatch.setattr(os, step, refuse)

        runner = tiny.tiny_runner(runs, checkpoint=ATOMIC)
        runner.register_hook(Break())
        assert run_tool(runner.train) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith('error: the weights of iteration 12, the last, are not on disk (')
        assert os.strerror(number) in said
        assert f'{runs}/epoch_1.pth is the last that is' in said
        assert _names(runs) == ['epoch_1.pth', 'last_checkpoint']
        assert not list(runs.glob('.*'))

    def test_beyond_a_limit_on_the_size_of_files(self, runs, monkeypatch, pauses):
        """Python ignores SIGXFSZ, so a write fails with EFBIG, in the midst of the file."""

        def train() -> int:
            limits = (20_000, resource.RLIM_INFINITY)
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            return run_tool(tiny.tiny_runner(runs / 'run', checkpoint=ATOMIC).train)

        assert tiny.fork(runs / 'result', train).result() == 2
        assert not list((runs / 'run').glob('*.pth'))

    @pytest.mark.parametrize('number', ERRORS)
    def test_of_two_ranks_ends_with_code_2(self, runs, monkeypatch, pauses, number):
        self._fail(monkeypatch, OSError(number, os.strerror(number)), 99)

        def train() -> int:
            options = dict(launcher='pytorch', ranks=2, checkpoint=ATOMIC)
            return run_tool(tiny.tiny_runner(runs / 'run', **options).train)

        children = tiny.fork_ranks(2, runs / 'ranks', train)
        assert [child.result() for child in children] == [2, 2]

    def _fail_best(self, monkeypatch, error: OSError, times: int) -> None:
        """Make saves of the best checkpoint of the second epoch fail."""
        failed = []
        save = files.save_sealed

        def failing(checkpoint, path):
            if 'best' in Path(path).name and 'epoch_2' in Path(path).name and len(failed) < times:
                failed.append(path)
                raise error
            save(checkpoint, path)

        monkeypatch.setattr('poolformer_dense.runner.saving.save_sealed', failing)
        monkeypatch.setattr(tiny.TinyMetric, 'compute_metrics', _improving())

    def test_of_the_best_is_tried_again(self, runs, monkeypatch, full_disk, pauses):
        self._fail_best(monkeypatch, full_disk, 2)
        options = ATOMIC | dict(max_keep_ckpts=1, save_best='tiny/score', rule='greater')
        runner = tiny.tiny_runner(runs, checkpoint=options)
        runner.train()
        assert pauses == [1.0, 5.0]
        assert _names(runs) == ['best_tiny_score_epoch_2.pth', 'epoch_2.pth', 'last_checkpoint']
        info = torch.load(runs / 'epoch_2.pth', weights_only=False)['message_hub']['runtime_info']
        assert info['best_ckpt'].endswith('best_tiny_score_epoch_2.pth')

    @pytest.mark.parametrize('number', ERRORS)
    @pytest.mark.parametrize('ranks', [1, 2])
    def test_of_the_best_ends_with_code_2(self, runs, monkeypatch, pauses, ranks, number):
        self._fail_best(monkeypatch, OSError(number, os.strerror(number)), 99)
        options = ATOMIC | dict(max_keep_ckpts=1, save_best='tiny/score', rule='greater')

        def train() -> int:
            several = dict(launcher='pytorch', ranks=2) if ranks > 1 else {}
            return run_tool(tiny.tiny_runner(runs / 'run', checkpoint=options, **several).train)

        children = tiny.fork_ranks(ranks, runs / 'ranks', train)
        assert [child.result() for child in children] == [2] * ranks
        names = ['best_tiny_score_epoch_1.pth', 'epoch_2.pth', 'last_checkpoint']
        assert _names(runs / 'run') == names


def _improving():
    scores = iter(range(1, 99))
    return lambda *_: dict(score=float(next(scores)))
