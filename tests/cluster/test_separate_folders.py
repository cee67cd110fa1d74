"""Hosts whose work folders have one path and are not one folder."""

from __future__ import annotations

import os
import shutil
import signal

import pytest
import torch

from backbones.checkpoints import read_checkpoint
from tests.cluster.hosts import ROOT
from tests.cluster.training import Detector, finished, launch, outcome


@pytest.fixture
def folders(hosts, tmp_path):
    """Each host's own folder; all see it as `tmp_path` / work, where their commands run."""
    place = tmp_path / 'work'
    place.mkdir()
    own = [host.folder / 'work' for host in hosts]
    for host, folder in zip(hosts, own, strict=True):
        (folder / 'run').mkdir(parents=True)
        host.mount(folder, place)
        host.cwd = place
    return own


@pytest.fixture
def place(tmp_path):
    """The work directory, as a host sees it."""
    return tmp_path / 'work/run'


def put(checkpoint, folder, change=0.0):
    """Give a host a checkpoint, or one that differs from it in one weight."""
    target = folder / 'run' / checkpoint.name
    if change:
        content = read_checkpoint(checkpoint)
        next(iter(content['state_dict'].values())).view(-1)[0] += change
        with open(target, 'wb') as file:
            torch.save(content, file)
    else:
        shutil.copy(checkpoint, target)
    (folder / 'run/last_checkpoint').write_text(str(target))


def test_training(hosts, folders, place, shapes, tmp_path, undisturbed):
    jobs = Detector(tmp_path / 'config', shapes).train(hosts, place)
    finished(jobs)
    assert f'{place} is not shared: beta' in jobs[0].said
    assert outcome(folders[0] / 'run') == outcome(undisturbed(2))
    assert not list((folders[1] / 'run').glob('*.pth'))


def test_evaluation(hosts, folders, place, shapes, tmp_path, undisturbed):
    checkpoint = shutil.copy(undisturbed(2) / 'epoch_2.pth', tmp_path)
    detector = Detector(tmp_path / 'config', shapes)
    command = [ROOT / 'tools/dist_test.sh', detector.path, checkpoint, 1, '--work-dir', place]
    jobs = launch(hosts, command)
    finished(jobs)
    assert 'coco/bbox_mAP: ' in jobs[0].said


@pytest.mark.parametrize('which', ['both', 'the first'])
def test_resuming(hosts, folders, place, shapes, tmp_path, undisturbed, which):
    for folder in folders[: 2 if which == 'both' else 1]:
        put(undisturbed(2) / 'epoch_1.pth', folder)
    jobs = Detector(tmp_path / 'config', shapes).train(hosts, place, '--resume')
    finished(jobs)
    assert outcome(folders[0] / 'run') == outcome(undisturbed(2))


@pytest.mark.parametrize('what', ['the second alone has one', 'another', 'a later one'])
def test_no_ranks_train_different_weights(
    hosts, folders, place, shapes, tmp_path, undisturbed, what
):
    first = undisturbed(2) / 'epoch_1.pth'
    if what != 'the second alone has one':
        put(first, folders[0])
    later = undisturbed(2) / 'epoch_2.pth'
    put(later if what == 'a later one' else first, folders[1], 0.01 * (what == 'another'))
    jobs = Detector(tmp_path / 'config', shapes).train(hosts, place, '--resume')
    for job in jobs:
        assert job.wait() not in (0, 75), job.said
    said = [line for job in jobs for line in job.said.splitlines() if line.startswith('error: ')]
    assert any('alpha' in line and 'beta' in line for line in said), said


def test_a_dead_rank_with_restarts(hosts, folders, place, shapes, tmp_path, undisturbed):
    detector = Detector(tmp_path / 'config', shapes, gate=True)
    jobs = detector.train(hosts, place, MAX_RESTARTS=3)
    detector.wait_for_gate(hosts)
    os.kill(hosts[1].ranks()[1], signal.SIGKILL)
    detector.open_gate()
    finished(jobs)
    assert outcome(folders[0] / 'run') == outcome(undisturbed(2))
