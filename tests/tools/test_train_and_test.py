"""The tools as a user runs them: other processes, another folder, real files."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from poolformer_dense.exporting.exporter import write_export
from poolformer_dense.measure.shapes import CLASSES
from tests.tiny_models import tiny_predictor


def _trained(folder: Path) -> Path:
    return Path((folder / 'last_checkpoint').read_text())


@pytest.fixture(scope='module')
def trained_retinanet(run_fresh, root, shapes, tmp_path_factory):
    """The demo's detector after two short epochs, and what the training printed."""
    work_dir = tmp_path_factory.mktemp('retinanet')
    done = run_fresh(
        'train.py',
        root / 'configs/demo/retinanet_poolformer_s12.py',
        '--work-dir', work_dir,
        '--cfg-options', f'data_root={shapes}/coco', 'train_cfg.max_epochs=2',
        'train_cfg.val_interval=2', 'train_dataloader.batch_size=4',
        'default_hooks.logger.interval=1',
        cwd=work_dir,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return _trained(work_dir), done


def test_training_writes_a_checkpoint_and_evaluates(trained_retinanet):
    checkpoint, done = trained_retinanet
    assert checkpoint.name == 'epoch_2.pth'
    assert 'Epoch(val) [2]' in done.stdout + done.stderr
    assert 'Traceback' not in done.stderr  # workers end in silence
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    # The published detector, with a classification layer for 3 classes instead of 80.
    classifier = 9 * (256 * 9 + 1)
    assert sum(v.numel() for v in state.values()) == 21_653_044 - 77 * classifier


def _log_of(folder: Path) -> str:
    [log] = folder.glob('*/*.log')
    return log.read_text()


# The first is not in all stacks.
REMARKS = (
    'Could not import OneDL', 'System environment', 'auto_scale_lr = dict(', 'after_train_iter:',
    'FileClient', 'HardDiskBackend', 'index created', 'takes its place', 'Distributed training',
)  # fmt: skip


def test_a_training_shows_what_is_the_users_to_know(shapes, trained_retinanet):
    checkpoint, done = trained_retinanet
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if 'Epoch(train) [1][1/2]' in line)
    assert first <= 25
    start = '\n'.join(lines[:first])
    assert f'Data: train 8 images in {shapes}/coco, validation 4 images' in start
    for said in ('Weights: from scratch', 'Batch: 1 ', f'Results: {checkpoint.parent} (log: '):
        assert said in start
    log = _log_of(checkpoint.parent)
    assert [remark for remark in REMARKS if remark in done.stdout + done.stderr] == []
    assert [remark for remark in REMARKS[1:] if remark not in log] == []


def test_lines_of_steps_and_metrics_are_those_of_mmengine(trained_retinanet):
    checkpoint, done = trained_retinanet
    start = r'^[\d/]+ [\d:]+ - mmengine - INFO - '
    step = (
        r'Epoch\(train\) \[2\]\[2/2\]  lr: \S+  eta: 0:00:00  time: \S+  data_time: .*  loss: \S+ '
    )
    for text in (done.stdout, _log_of(checkpoint.parent)):
        assert re.search(start + step, text, re.MULTILINE)
        assert re.search(rf'{start}Epoch\(val\) \[2\]\[4/4\]  +', text, re.MULTILINE)


@pytest.fixture(scope='module')
def evaluated_retinanet(run_fresh, root, shapes, trained_retinanet, tmp_path_factory):
    """The folder of its evaluation by one process, and what that printed."""
    folder = tmp_path_factory.mktemp('evaluated')
    done = run_fresh(
        'test.py',
        root / 'configs/demo/retinanet_poolformer_s12.py', trained_retinanet[0],
        '--work-dir', 'w', '--show-dir', 'pictures', '--out', 'found.pkl',
        '--cfg-options', f'data_root={shapes}/coco', 'model.test_cfg.score_thr=0.0',
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_evaluation_prints_the_table_and_writes_pictures(shapes, evaluated_retinanet):
    folder, done = evaluated_retinanet
    assert [remark for remark in REMARKS if remark in done.stdout + done.stderr] == []
    assert len(done.stdout.splitlines()) < 40
    assert 'Average Precision  (AP) @[ IoU=0.50:0.95 | area=   all | maxDets=100 ]' in done.stdout
    names = sorted(path.name for path in (folder / 'pictures').iterdir())
    assert names == sorted(path.name for path in (shapes / 'coco/val2017').iterdir())
    picture = cv2.imread(str(folder / 'pictures' / names[0]))
    original = cv2.imread(str(shapes / 'coco/val2017' / names[0]))
    assert picture.shape[1] == 2 * original.shape[1]  # ground truth beside prediction
    found = pickle.loads((folder / 'found.pkl').read_bytes())
    assert len(found) == len(names)
    assert set(np.unique(found[0]['pred_instances']['labels'])) <= set(range(len(CLASSES)))


def test_no_detection_is_explained(run, root, shapes, trained_retinanet, tmp_path):
    done = run(
        'test.py',
        root / 'configs/demo/retinanet_poolformer_s12.py', trained_retinanet[0],
        '--work-dir', tmp_path,
        '--cfg-options', f'data_root={shapes}/coco', 'model.test_cfg.score_thr=0.99',
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'No AP: no detection scored above' in done.stdout + done.stderr


def test_resume_continues(run, root, shapes, trained_retinanet, tmp_path):
    done = run(
        'train.py',
        root / 'configs/demo/retinanet_poolformer_s12.py',
        '--work-dir', tmp_path, '--resume', trained_retinanet[0],
        '--cfg-options', f'data_root={shapes}/coco', 'train_cfg.max_epochs=3',
        'train_cfg.val_interval=9', 'train_dataloader.batch_size=4',
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'resumed epoch: 2' in done.stdout + done.stderr
    assert _trained(tmp_path).name == 'epoch_3.pth'


def test_mask_rcnn_trains_and_evaluates_masks(run, root, shapes, tmp_path):
    config = root / 'configs/demo/mask_rcnn_poolformer_s12.py'
    data = f'data_root={shapes}/coco'
    done = run(
        'train.py', config, '--work-dir', tmp_path,
        '--cfg-options', data, 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1',
        'train_dataloader.batch_size=4', 'model.test_cfg.rcnn.score_thr=0.0',
        'model.test_cfg.rcnn.max_per_img=5', 'model.train_cfg.rcnn.sampler.num=32', cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'coco/segm_mAP' in done.stdout + done.stderr


@pytest.fixture(scope='module')
def trained_fpn(run, root, shapes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('fpn')
    done = run(
        'train.py', root / 'configs/demo/fpn_poolformer_s12.py', '--work-dir', work_dir,
        '--cfg-options', f'data_root={shapes}/ade', 'train_cfg.max_iters=4',
        'train_cfg.val_interval=4', 'default_hooks.checkpoint.interval=4',
        'train_dataloader.batch_size=2',
        cwd=work_dir,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return _trained(work_dir), done


def test_segmentation_trains_and_evaluates(trained_fpn):
    checkpoint, done = trained_fpn
    assert checkpoint.name == 'iter_4.pth'
    output = done.stdout + done.stderr
    assert all(name in output for name in ('mIoU', 'background', *CLASSES))


def _label_maps(run, root, shapes, checkpoint, folder, *options):
    """Test the segmentor; return its label maps and what was printed."""
    done = run(
        'test.py', root / 'configs/demo/fpn_poolformer_s12.py', checkpoint, *options,
        '--work-dir', 'w', '--out', 'maps', '--cfg-options', f'data_root={shapes}/ade',
        cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return sorted((folder / 'maps').rglob('*.png')), done.stdout + done.stderr


@pytest.fixture(scope='module')
def tested_fpn(run, root, shapes, trained_fpn, tmp_path_factory):
    """The folder of the segmentor's test, its label maps and what was printed."""
    folder = tmp_path_factory.mktemp('tested')
    options = ('--show-dir', 'pictures')
    return folder, *_label_maps(run, root, shapes, trained_fpn[0], folder, *options)


def test_segmentation_writes_label_maps_and_pictures(shapes, tested_fpn):
    folder, maps, _ = tested_fpn
    truth = sorted((shapes / 'ade/annotations/validation').iterdir())
    assert [m.name for m in maps] == [t.name for t in truth]
    assert cv2.imread(str(maps[0]), 0).shape == cv2.imread(str(truth[0]), 0).shape
    assert len(list((folder / 'pictures').rglob('*.png'))) == len(truth)


def test_a_folded_backbone_predicts_the_same(run, root, shapes, trained_fpn, tested_fpn, tmp_path):
    _, maps, printed = tested_fpn
    assert 'The backbone is folded' not in printed
    folded, printed = _label_maps(run, root, shapes, trained_fpn[0], tmp_path, '--fuse')
    assert 'The backbone is folded' in printed
    assert len(maps) == len(folded) == 4
    pairs = [[cv2.imread(str(m), 0) for m in pair] for pair in zip(maps, folded, strict=True)]
    assert np.mean([np.mean(a == b) for a, b in pairs]) > 0.999


def test_two_processes_agree(run, root, shapes, free_port, tmp_path):
    # Rank 1 writes what it ends with, so that both ranks' parameters can be compared.
    hook = tmp_path / 'every_rank.py'
    hook.write_text(
        'import torch\n'
        'from mmengine.dist import get_rank\n'
        'from mmengine.hooks import Hook\n'
        'from mmengine.registry import HOOKS\n'
        '@HOOKS.register_module()\n'
        'class SaveEveryRank(Hook):\n'
        '    def after_train(self, runner):\n'
        "        torch.save(runner.model.module.state_dict(), f'rank{get_rank()}.pth')\n"
    )
    config = tmp_path / 'config.py'
    config.write_text(
        f"_base_ = '{root}/configs/demo/retinanet_poolformer_s12.py'\n"
        "custom_imports = dict(imports=[*_base_.custom_imports.imports, 'every_rank'])\n"
        "custom_hooks = [dict(type='SaveEveryRank')]\n"
        "model = dict(neck=dict(norm_cfg=dict(type='SyncBN')))\n"
    )
    done = run(
        'dist_train.sh', config, 2, '--work-dir', tmp_path / 'w',
        '--cfg-options', f'data_root={shapes}/coco', 'train_cfg.max_epochs=1',
        'train_cfg.val_interval=9', 'train_dataloader.batch_size=2',
        cwd=tmp_path, env={'PORT': str(free_port), 'PYTHONPATH': str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'gloo backend, and SyncBN is replaced by BN' in done.stdout + done.stderr
    one, two = (torch.load(tmp_path / f'rank{i}.pth') for i in (0, 1))
    assert one.keys() == two.keys()
    # the statistics of batch norm are each process's own
    assert all(torch.equal(one[k], two[k]) for k in one if 'running_' not in k)


def test_distributed_evaluation_counts_every_image(
    run, root, shapes, trained_retinanet, evaluated_retinanet, free_port, tmp_path
):
    done = run(
        'dist_test.sh', root / 'configs/demo/retinanet_poolformer_s12.py', trained_retinanet[0], 2,
        '--work-dir', 'w',
        '--cfg-options', f'data_root={shapes}/coco', 'model.test_cfg.score_thr=0.0',
        cwd=tmp_path, env={'PORT': str(free_port)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        json.loads(path.read_text())
        for folder in (evaluated_retinanet[0], tmp_path)
        for path in folder.glob('w/*/2*.json')
    )
    for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50'):
        assert one[key] == two[key]


@pytest.mark.slow
def test_two_processes_evaluate_an_exported_file_as_one_does(
    run, root, shapes, free_port, tmp_path
):
    predictor = tiny_predictor(root, 'fpn', tmp_path / 'weights.pth')
    predictor.cfg.dump(str(tmp_path / 'config.py'))
    write_export(predictor, tmp_path / 'model.onnx', None)
    found = []
    for tool, processes in (('test.py', []), ('dist_test.sh', [2])):
        done = run(
            tool, 'config.py', 'model.onnx', *processes, '--work-dir', f'of_{tool}',
            '--cfg-options', f'data_root={shapes}/ade',
            cwd=tmp_path, env={'PORT': str(free_port)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        [path] = tmp_path.glob(f'of_{tool}/*/2*.json')
        found.append(json.loads(path.read_text()))
    one, two = found
    assert one['mIoU'] == two['mIoU'] > 0


@pytest.mark.parametrize(
    ('tool', 'arguments', 'message'),
    [
        ('train.py', ['nowhere.py'], 'config nowhere.py does not exist'),
        ('train.py', ['{config}'], 'no data at {cwd}/data/shapes/coco'),
        (
            'train.py',
            ['{config}', '--cfg-options', 'train_dataloader.batchsize=3'],
            'nearest valid key is train_dataloader.batch_size',
        ),
        ('train.py', ['{config}', '--resume', 'none.pth', '{data}'], 'none.pth does not exist'),
        ('test.py', ['{config}', '{config}', '{data}'], 'was not loaded'),
        ('train.py', ['{config}', '--cfg-options', 'train_cfg.max_epochs', '1'], 'key=value'),
        ('test.py', ['{config}', 'none.pth', '{data}', '--out', 'x.txt'], 'go to a .pkl file'),
    ],
)
def test_errors_are_one_line(run, root, shapes, tmp_path, tool, arguments, message):
    config = root / 'configs/demo/retinanet_poolformer_s12.py'
    given = []
    for argument in arguments:
        if argument == '{data}':
            given += ['--cfg-options', f'data_root={shapes}/coco']
        else:
            given.append(argument.format(config=config))
    done = run(tool, *given, cwd=tmp_path)
    assert done.returncode == 2
    # argparse puts the tool's name before its own.
    errors = re.findall(r'^(?:\w+\.py: )?error: .*$', done.stderr, re.MULTILINE)
    assert len(errors) == 1
    assert message.format(cwd=tmp_path) in errors[0]
    assert 'Traceback' not in done.stderr


def test_no_arguments_print_the_usage(run, tmp_path):
    for tool in ('dist_train.sh', 'dist_test.sh'):
        done = run(tool, cwd=tmp_path)
        assert done.returncode == 2
        assert f'Usage: tools/{tool} CONFIG' in done.stderr
