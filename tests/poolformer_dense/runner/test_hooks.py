"""What a training says of its batch and its learning rate, and what it then trains with."""

from __future__ import annotations

import logging
import re
from types import SimpleNamespace

import pytest
from mmdet.evaluation import CocoMetric
from mmengine.evaluator import DumpResults
from torch import nn
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from poolformer_dense.config.load import enable_lr_scaling, load_config
from poolformer_dense.runner.hooks import (
    BatchReportHook,
    EmptyResultHook,
    StartReportHook,
    batch_factors,
)
from poolformer_dense.runner.label_writer import DumpLabelMaps
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny


@pytest.fixture
def demo(root, shapes, tmp_path):
    """A small detector on drawn shapes, base batch 4, one epoch of 8 images."""
    path = tiny.write_demo(root, 'retinanet', tmp_path)

    def load(overrides=None, **arguments):
        small = {
            'data_root': str(shapes / 'coco'),
            'train_cfg.max_epochs': 1,
            'train_cfg.val_interval': 9,
            'train_dataloader.num_workers': 0,
            'train_dataloader.persistent_workers': False,
        }
        return load_config(str(path), small | (overrides or {}), str(tmp_path), **arguments)

    return load


@pytest.fixture
def report(monkeypatch, caplog):
    """Run what comes before a training's first step, and return what was reported."""

    def prepare(cfg, processes=1, train=False):
        monkeypatch.setattr('poolformer_dense.runner.hooks.get_world_size', lambda: processes)
        runner = build_runner(cfg)
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        runner.logger.addHandler(handler)
        if not train:
            # Everything of a training but its iterations.
            monkeypatch.setattr(
                type(runner.build_train_loop(runner._train_loop)),
                'run',
                lambda loop: loop.runner.call_hook('before_train'),
            )
        runner.train()
        runner.logger.removeHandler(handler)
        found = [m for m in records if m.startswith(('Batch:', 'The LR is for'))]
        return runner, found

    return prepare


def test_a_real_training_reports_once_and_trains_with_the_rate(demo, report):
    cfg = demo({'train_dataloader.batch_size': 2}, prepare=[enable_lr_scaling])
    runner, messages = report(cfg, train=True)
    assert runner.iter == 4
    assert messages == [
        'Batch: 1 CPU process x 2 images = 2. Base batch of the config: 4. LR: 0.0002, as scaled '
        'from the base batch'
    ]
    # The schedules are of the scaled rate: after 4 of 100 warm-up steps (in 99 intervals) the
    # warm-up's factor is 0.01 + 0.99 * 4 / 99; the cosine has hardly begun.
    [rate] = runner.optim_wrapper.get_lr()['lr']
    assert rate == pytest.approx(2e-4 * 0.05, rel=0.01)


@pytest.mark.parametrize(
    ('processes', 'images', 'accumulated', 'counted', 'hint'),
    [
        (1, 4, 1, '1 CPU process x 4 images = 4.', None),
        (2, 2, 1, '2 CPU processes x 2 images = 4.', None),
        (1, 2, 2, '1 CPU process x 2 images x 2 accumulated = 4.', None),
        (1, 1, 1, '1 CPU process x 1 image = 1.', 'batch 4, the batch is 1: .* 0.0001'),
        (2, 4, 2, '2 CPU processes x 4 images x 2 accumulated = 16.', 'the batch is 16: .* 0.0016'),
    ],
)
def test_the_hint_comes_when_the_batch_is_not_the_rates(
    demo, report, processes, images, accumulated, counted, hint
):
    cfg = demo(
        {
            'train_dataloader.batch_size': images,
            'optim_wrapper.accumulative_counts': accumulated,
        }
    )
    _, messages = report(cfg, processes)
    assert messages[0] == f'Batch: {counted} Base batch of the config: 4. LR: 0.0004'
    assert len(messages) == (2 if hint else 1)
    if hint:
        assert re.search(hint, messages[1])
        assert '--auto-scale-lr' in messages[1]


def test_the_hints_number_is_what_the_switch_makes(demo, report):
    overrides = {'train_dataloader.batch_size': 3, 'optim_wrapper.accumulative_counts': 2}
    _, (_, hint) = report(demo(overrides), processes=2)
    _, (told,) = report(demo(overrides, prepare=[enable_lr_scaling]), processes=2)
    assert hint.endswith('would make it 0.0012')
    assert 'LR: 0.0012, as scaled' in told


def test_groups_of_several_rates_are_counted(demo, report):
    cfg = demo({'optim_wrapper.paramwise_cfg': dict(custom_keys={'backbone': dict(lr_mult=0.1)})})
    runner, (message,) = report(cfg)
    backbone = sum(1 for _ in runner.model.backbone.parameters())
    others = sum(1 for _ in runner.model.parameters()) - backbone
    assert message.endswith(f'LR: 0.0004 ({others} tensors), 4e-05 ({backbone} tensors)')


def test_a_config_without_base_batch_gets_no_hint(demo, report):
    cfg = demo()
    cfg.pop('auto_scale_lr')
    _, messages = report(cfg, processes=2)
    assert [m.split('. ')[1] for m in messages] == ['Base batch of the config: not given']


def test_a_resumed_training_reports_the_checkpoints_rate(demo, report, tmp_path):
    report(demo({'optim_wrapper.optimizer.lr': 3e-4}), train=True)
    overrides = {'train_cfg.max_epochs': 2, 'train_dataloader.batch_size': 2}
    for scaling in ([], [enable_lr_scaling]):  # which the checkpoint's optimizer undoes
        cfg = demo(overrides, prepare=scaling)
        cfg.resume = True
        cfg.load_from = str(tmp_path / 'epoch_1.pth')
        _, messages = report(cfg)
        assert len(messages) == 1
        assert messages[0].endswith("LR: 0.0003, the checkpoint's own")


def test_nothing_to_resume_from_is_a_training_anew(demo, report, tmp_path):
    cfg = demo({'train_dataloader.batch_size': 2})
    cfg.resume = True
    _, messages = report(cfg)
    assert messages[0].endswith('LR: 0.0004')
    assert '--auto-scale-lr would make it 0.0002' in messages[1]


def test_every_training_has_the_report(demo):
    cfg = demo()
    cfg.custom_hooks = []
    assert any(isinstance(hook, BatchReportHook) for hook in build_runner(cfg).hooks)


class _Images(list):
    def __init__(self, number, root):
        super().__init__(range(number))
        self.data_root = root


class _Stream(IterableDataset):
    def __iter__(self):
        return iter([1])


@pytest.mark.parametrize(
    ('dataset', 'told'),
    [
        (_Images(3, 'a/'), '3 images in a'),
        (ConcatDataset([_Images(3, 'a/'), _Images(2, 'b'), _Images(1, 'a')]), '6 images in a, b'),
        (Subset(_Images(3, 'a'), [0, 1]), '2 images in a'),
        (_Stream(), 'a stream'),
    ],
)
@pytest.mark.parametrize(
    ('init_cfg', 'loaded', 'scratch'),
    [(None, None, True), (None, 'a.pth', False), (dict(type='Pretrained'), None, False)],
)
def test_a_run_says_what_it_starts_from(dataset, told, init_cfg, loaded, scratch):
    said = []
    runner = SimpleNamespace(
        test_dataloader=SimpleNamespace(dataset=dataset),
        model=nn.Linear(999, 1000),
        cfg=dict(model=dict(backbone=dict(init_cfg=init_cfg))),
        loaded_from=loaded,
        work_dir='w',
        logger=SimpleNamespace(info=said.append, log_file='w/1.log'),
    )
    StartReportHook().before_test(runner)
    assert said[:2] == [f'Data: test {told}', 'Model: Linear, 1.0 M parameters']
    assert said[-1] == 'Results: w (log: w/1.log)'
    assert any(text.startswith('Weights: from scratch') for text in said) == scratch


def test_factors_come_from_the_config(demo):
    cfg = demo({'train_dataloader.batch_size': 3})
    assert batch_factors(cfg) == (1, 3, 1)


@pytest.mark.parametrize(
    ('metrics', 'metrics_of_the_run', 'explained'),
    [
        ([CocoMetric()], {}, True),
        ([CocoMetric()], {'coco/bbox_mAP': 0.1}, False),
        ([CocoMetric(format_only=True, outfile_prefix='x')], {}, False),
        ([CocoMetric(format_only=True, outfile_prefix='x'), DumpResults('x.pkl')], {}, False),
        ([CocoMetric(), DumpResults('x.pkl')], {}, True),
        ([DumpLabelMaps('x')], {}, False),
    ],
)
def test_only_an_evaluation_without_figures_is_explained(
    metrics, metrics_of_the_run, explained, caplog
):
    loop = SimpleNamespace(evaluator=SimpleNamespace(metrics=metrics))
    logger = logging.getLogger('explained')
    runner = SimpleNamespace(val_loop=loop, test_loop=loop, logger=logger)
    EmptyResultHook().after_val_epoch(runner, metrics_of_the_run)
    EmptyResultHook().after_test_epoch(runner, metrics_of_the_run)
    assert len([line for line in caplog.messages if 'no detection' in line]) == 2 * explained
