"""Work over two hosts ends as that of one, to the bit."""

from __future__ import annotations

import json

import pytest

from tests.cluster import hosts as machines
from tests.cluster.hosts import ROOT
from tests.cluster.training import Detector, finished, launch, outcome


@pytest.mark.parametrize('ranks', [2, 4])
def test_training(hosts, shapes, tmp_path, undisturbed, ranks):
    detector = Detector(tmp_path / 'config', shapes, ranks)
    finished(detector.train(hosts, tmp_path / 'run'))
    assert outcome(tmp_path / 'run') == outcome(undisturbed(ranks))


def test_evaluation(hosts, shapes, tmp_path, undisturbed):
    detector = Detector(tmp_path / 'config', shapes)
    checkpoint = undisturbed(2) / 'epoch_2.pth'
    with machines.cluster(tmp_path / 'alone', ['single']) as single:
        # The script needs a number of processes, this tool does not.
        command = [ROOT / 'tools/test.py', detector.path, checkpoint]
        one = single[0].start('python', *command, *_work_dir(tmp_path / 'one'))
        finished([one])
    command = [ROOT / 'tools/dist_test.sh', detector.path, checkpoint, 1]
    finished(launch(hosts, [*command, *_work_dir(tmp_path / 'two')]))
    assert _metrics(tmp_path / 'two') == _metrics(tmp_path / 'one')


def _work_dir(folder):
    prefix = f'test_evaluator.outfile_prefix={folder}/found'
    return ['--work-dir', folder, '--cfg-options', prefix]


def _metrics(folder):
    """The AP and its like, and every box that was found."""
    [path] = folder.glob('2*/2*.json')
    values = {k: v for k, v in json.loads(path.read_text()).items() if 'time' not in k}
    assert 'coco/bbox_mAP' in values
    return values, json.loads((folder / 'found.bbox.json').read_text())
