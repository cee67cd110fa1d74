"""The one-line options of docs/report.md: loggers, EMA and early stopping."""

from __future__ import annotations

import re
import shlex

import pytest
import torch
from mmengine.hooks import EarlyStoppingHook, EMAHook
from mmengine.registry import VISBACKENDS
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from poolformer_dense.config.load import load_config
from poolformer_dense.config.preflight import check_run
from poolformer_dense.errors import UserError
from poolformer_dense.report.hook import ReportHook
from poolformer_dense.runner.runner import build_runner


@pytest.fixture(scope='module')
def page(root):
    """docs/report.md."""
    return (root / 'docs/report.md').read_text()


@pytest.fixture
def with_line(root, shapes, tmp_path):
    """Load a demo config of eight images to which a line is added."""

    def load(line='', name='retinanet', **overrides):
        path = tmp_path / 'config.py'
        path.write_text(f"_base_ = '{root}/configs/demo/{name}_poolformer_s12.py'\n{line}\n")
        layout = 'ade' if name == 'fpn' else 'coco'
        small = {
            'data_root': str(shapes / layout),
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
            'val_dataloader.num_workers': 0,
            'val_dataloader.persistent_workers': False,
        }
        overrides = {key.replace('__', '.'): value for key, value in overrides.items()}
        return load_config(str(path), small | overrides, str(tmp_path / 'work'))

    return load


def _lines(page, language):
    return [
        line
        for block in re.findall(rf'^```{language}\n(.*?)^```$', page, re.MULTILINE | re.DOTALL)
        for line in block.replace('\\\n', '').splitlines()
    ]


def test_the_page_has_the_lines(page):
    assert len(_lines(page, 'python')) == 5
    assert sum('--cfg-options' in line for line in _lines(page, 'sh')) == 6


@pytest.mark.parametrize('number', range(5))
def test_lines_of_the_page_name_what_is_there(page, with_line, number):
    cfg = with_line(_lines(page, 'python')[number])
    types = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert types[0] == 'LocalVisBackend'
    assert all(VISBACKENDS.get(kind) is not None for kind in types)
    # Nothing of ours is lost by the line.
    assert cfg.default_hooks.report.type == 'ReportHook'
    assert cfg.default_hooks.checkpoint.interval
    assert cfg.visualizer.type == 'DetLocalVisualizer'


@pytest.mark.parametrize('number', range(6))
@pytest.mark.parametrize('name', ['retinanet', 'fpn'])
def test_options_of_the_page_are_accepted(page, with_line, number, name):
    commands = [line for line in _lines(page, 'sh') if '--cfg-options' in line]
    words = shlex.split(commands[number], comments=True)
    options = dict(word.split('=', 1) for word in words[words.index('--cfg-options') + 1 :])
    with_line(name=name, **options)


@pytest.mark.parametrize(
    ('kind', 'module'),
    [
        ('TensorboardVisBackend', 'tensorboard'),
        ('WandbVisBackend', 'wandb'),
        ('MLflowVisBackend', 'mlflow'),
    ],
)
def test_a_logger_that_is_not_installed_is_one_line(with_line, monkeypatch, kind, module):
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        'importlib.util.find_spec',
        lambda name, *more: None if name == module else there(name, *more),
    )
    cfg = with_line(visualizer__vis_backends__1__type=kind)
    with pytest.raises(UserError, match=rf'vis_backends.1 \({kind}\): {module} is not installed'):
        check_run(cfg, ['train', 'val'])


@pytest.fixture
def trained(with_line, tmp_path):
    """A training that EMA averages and that stops at the second of four epochs."""
    lines = (
        "default_hooks = dict(ema=dict(type='EMAHook', momentum=0.5), stop=dict("
        "type='EarlyStoppingHook', monitor='coco/bbox_mAP', min_delta=2.0, patience=1))"
    )
    overrides = dict(
        train_cfg__max_epochs=4, train_cfg__val_interval=1, model__test_cfg__score_thr=0.0,
        default_hooks__logger__interval=1,
    )  # fmt: skip
    cfg = with_line(lines, **overrides)
    check_run(cfg, ['train', 'val'])
    runner = build_runner(cfg)
    runner.train()
    return runner, tmp_path / 'work'


def test_a_training_with_every_option(trained):
    runner, folder = trained
    for kind in (EMAHook, EarlyStoppingHook, ReportHook):
        assert any(isinstance(hook, kind) for hook in runner.hooks), kind
    # It stopped when the second validation was not two better than the first.
    assert runner.epoch == 2
    # The averaged weights are saved, and those that were trained beside them.
    saved = torch.load(folder / 'epoch_2.pth', weights_only=False)
    ema, source = saved['state_dict'], saved['ema_state_dict']
    name = 'backbone.stages.2.5.mlp.fc1.weight'
    assert not torch.equal(ema[name], source[f'module.{name}'])
    # TensorBoard has what the log has.
    [events] = folder.glob('*/vis_data/events*')
    accumulator = EventAccumulator(str(events)).Reload()
    assert len(accumulator.Scalars('loss')) == 4
    assert [event.step for event in accumulator.Scalars('coco/bbox_mAP')] == [1, 2]
    # The report is there, with the predictions.
    text = (folder / 'report.html').read_text()
    assert '2 of 4' in text
    assert 'was not kept' not in text
    assert text.count('<img ') == 6
