"""A folder that can't be written is one line before the model is built, and nothing is left."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile

import pytest

from poolformer_dense.config.preflight import check_run
from poolformer_dense.config.preflight.folders import check_folders
from poolformer_dense.config.preflight.plan import Plan
from poolformer_dense.errors import UserError
from poolformer_dense.runner.folder_lock import alone_in


@pytest.fixture
def read_only(tmp_path):
    """A folder of a file system that is mounted read-only: permissions do not bind root."""
    place = tmp_path / 'read_only'
    place.mkdir()
    for options in (['--bind', place], ['-o', 'remount,ro,bind']):
        done = subprocess.run(['mount', *options, place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f'can not mount here: {done.stderr.strip()}')
    yield place
    subprocess.run(['umount', place], check=True)


def _found(work_dir, **hooks) -> list[str]:
    cfg = dict(work_dir=str(work_dir), default_hooks=dict(checkpoint=hooks))
    return [notice.text for notice in check_folders(Plan(cfg, ['train', 'val']))]


@pytest.mark.parametrize('inside', ['', 'new', 'new/and/deeper'])
def test_a_read_only_file_system(read_only, inside):
    [text] = _found(read_only / inside)
    assert f'work_dir: {read_only / inside} can not be written' in text
    assert 'Read-only file system' in text
    assert '--work-dir' in text
    assert '\n' not in text


def test_the_training_is_refused_once(read_only, capsys):
    with pytest.raises(UserError, match='Read-only file system'), alone_in(read_only):
        pass
    assert capsys.readouterr() == ('', '')


@pytest.mark.parametrize('inside', ['', 'work', 'deep/work'])
def test_a_file_in_its_place(tmp_path, inside):
    (tmp_path / 'file').write_text('kept')
    [text] = _found(tmp_path / 'file' / inside)
    assert 'it is not a folder' in text
    assert (tmp_path / 'file').read_text() == 'kept'


def test_a_link_to_nowhere(tmp_path):
    (tmp_path / 'link').symlink_to(tmp_path / 'gone')
    [text] = _found(tmp_path / 'link/work')
    assert f'in {tmp_path}/link (No such file or directory)' in text


@pytest.mark.parametrize('number', [errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.ESTALE])
def test_other_reasons(tmp_path, monkeypatch, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, 'TemporaryFile', refuse)
    [text] = _found(tmp_path)
    assert f'({os.strerror(number)})' in text


def test_where_checkpoints_go_counts_too(tmp_path):
    (tmp_path / 'file').touch()
    [text] = _found(tmp_path, out_dir=str(tmp_path / 'file/of'))
    assert text.startswith('default_hooks.checkpoint.out_dir: ')
    assert not _found(tmp_path, out_dir='s3://bucket/of')


def test_what_can_be_written_is_left_as_it_is(tmp_path, monkeypatch):
    assert not _found(tmp_path)
    assert not _found(tmp_path / 'new/work')
    monkeypatch.chdir(tmp_path)
    assert not _found('work_dirs/relative')
    assert not list(tmp_path.iterdir())


def test_comes_before_what_takes_longer(detection, tmp_path):
    (tmp_path / 'file').touch()
    cfg = detection()
    cfg.work_dir = str(tmp_path / 'file')
    cfg.model.backbone.arch = 'a mistake'
    with pytest.raises(UserError, match=r'^work_dir: '):
        check_run(cfg, ['train', 'val'])
