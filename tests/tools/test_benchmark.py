"""The benchmark as a user calls it."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys

import pytest
import torch

from poolformer_dense.measure.benchmark.busy import busy_processes
from poolformer_dense.measure.benchmark.whole import StageClock, build_contestants
from tests.tiny_models import tiny_config, tiny_predictor

ENV = {'OMP_NUM_THREADS': '1', 'MKL_NUM_THREADS': '1'}


def test_a_backbone_is_told_in_tables_and_json(run, tmp_path):
    arguments = '--task train --size 32 64 --batch 1 --rounds 1 --threads 1 --against timm'
    done = run('benchmark.py', *arguments.split(), '--json', 'times.json', cwd=tmp_path, env=ENV)
    assert done.returncode == 0, done.stderr
    first, *lines = [' '.join(line.split()) for line in done.stdout.splitlines()]
    assert '1 threads, torch' in first
    assert 'poolformer_s12 train, 1x3x32x64, float32' in lines
    assert 'how many times as fast ours is (its memory over theirs)' in lines
    result = json.loads((tmp_path / 'times.json').read_text())
    assert result['environment']['command'].startswith('benchmark.py --task train --size 32 64')
    names = {row['name'] for row in result['rows']}
    assert {'ours', "ours, recompute='mlp'", 'matrix products'} <= names
    if 'timm' not in names:  # only .venv-peers has it
        (missing,) = result['missing']
        assert missing in lines[-1] + done.stdout
        assert 'make peers' in missing


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ('poolformer_s13', 'nor is it a preset: poolformer_s12'),
        ('--device cuda:99', 'error: --device cuda:99: there is none here; torch'),
        ('--size 16 64', "'16' is not a number from 32"),
        ('--rounds 0', "'0' is not a number from 1"),
        ('--against timm,keras', "'keras' is none of reference, mmpretrain, timm, hf, compile"),
        ('--load -1', "'-1' is not a number from 0"),
        ('configs/nowhere.py', 'config configs/nowhere.py does not exist'),
        ('retinanet_poolformer_s12 --size 64 64', '--size is for a preset such as poolformer_s12'),
        ('poolformer_s12 a.pth', '--formats and --cfg-options need a config: poolformer_s12'),
        ('retinanet_poolformer_s12 --formats onnx', '--formats needs CONFIG CHECKPOINT'),
        ('--json nowhere/times.json', 'the folder of nowhere/times.json does not exist'),
    ],
)
def test_says_what_is_wrong_in_one_line(root, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *arguments.split()])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(root / 'tools/benchmark.py'), run_name='__main__')
    assert exit.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ('task', 'stages'),
    [
        pytest.param(
            'train',
            ['backbone', 'neck', 'heads', 'targets and losses', 'backward', 'optimizer'],
            marks=pytest.mark.slow,
        ),
        ('infer', ['backbone', 'neck', 'heads', 'post-processing']),
    ],
)
def test_each_stage_of_a_config_has_its_time(run, shapes, tmp_path, task, stages):
    done = run(
        'benchmark.py', 'demo/fpn_poolformer_s12', '--task', task, '--rounds', '1',
        '--threads', '1', '--load', '1', '--json', 'times.json', '--cfg-options',
        f'data_root={shapes}/ade', 'train_dataloader.batch_size=2', cwd=tmp_path, env=ENV,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'beside 1 busy processes' in done.stdout
    number, spread = r'(\d+\.\d)', r'\d+\.\d-\d+\.\d'
    row = rf'^ +(\S.*?) +{number} +{spread} +{number} +{spread} +\d+\.\d\dx *$'
    found = re.findall(row, done.stdout, re.MULTILINE)
    times = {stage: (float(ours), float(stock)) for stage, ours, stock in found}
    assert set(stages) <= set(times)
    assert min(times['backbone']) > 0
    whole = times.pop('whole step')
    result = json.loads((tmp_path / 'times.json').read_text())
    for i, name in enumerate(('ours', 'stock')):  # the stages are the step, but for rounding
        assert abs(whole[i] - sum(each[i] for each in times.values())) < 1
        assert abs(1e3 * sum(result[name][0].values()) - whole[i]) < 0.1


def test_stock_is_plain_torch_with_the_weights_of_ours(root, shapes):
    cfg = tiny_config(root, 'retinanet')
    cfg.merge_from_dict({'test_dataloader.dataset.data_root': f'{shapes}/coco/'})
    ours, stock = (each.model for each in build_contestants(cfg, 'infer', 'float32'))
    assert (ours.backbone.backend, stock.backbone.backend) == ('auto', 'reference')
    for name, value in ours.state_dict().items():
        assert torch.equal(value, stock.state_dict()[name])
    assert float(ours.bbox_head.retina_cls.bias.max()) < -4  # few detections


def test_a_file_has_its_accuracy(run, root, shapes, tmp_path, monkeypatch):
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'weights.pth')
    predictor.cfg.dump(str(tmp_path / 'config.py'))
    done = run(
        'benchmark.py', 'config.py', 'weights.pth', '--formats', 'onnx', '--rounds', '1',
        '--threads', '1', '--cfg-options', f'data_root={shapes}/ade', cwd=tmp_path, env=ENV,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r'^onnx mIoU \d+\.\d{3}$', done.stdout, re.MULTILINE)


def test_a_stage_within_another_is_counted_once(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr('poolformer_dense.measure.benchmark.whole.timer', lambda: next(now))
    clock = StageClock()
    with clock.stage('outer'), clock.stage('inner'):
        pass
    assert clock.seconds == {'outer': 1.0 + 4.0, 'inner': 2.0}


def test_busy_processes_end_with_the_block(monkeypatch):
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(subprocess, 'Popen', Noted)
    with busy_processes(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode for process in started)
