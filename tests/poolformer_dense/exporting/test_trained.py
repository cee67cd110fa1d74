"""Files of detectors trained on photographs find the same objects on other photographs."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

import poolformer_dense

pytestmark = pytest.mark.slow

SCALE = (256, 256)
EPOCHS = 5
CONFIGS = dict(
    retinanet='retinanet_poolformer_s12.py',
    mask_rcnn='mask_rcnn_poolformer_s12.py',
    cascade='beyond/cascade_mask_rcnn_poolformer_s12.py',
)
# Regions of an image that a second stage learns from: few, for they take the time.
SAMPLERS = dict(
    mask_rcnn=['model.train_cfg.rcnn.sampler.num'],
    cascade=[f'model.train_cfg.rcnn.{stage}.sampler.num' for stage in range(3)],
)


@pytest.fixture(scope='module', params=CONFIGS)
def trained(request, root, tiny_coco, tmp_path_factory):
    """What `export` is given: a published config for small photographs, its weights, overrides."""
    head = request.param
    config = root / 'configs' / CONFIGS[head]
    overrides = dict.fromkeys(SAMPLERS.get(head, ()), 64) | {
        'data_root': f'{tiny_coco}/',
        'model.backbone.init_cfg': None,
        'train_dataloader.dataset.pipeline.2.scale': SCALE,
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'val_dataloader.dataset.pipeline.1.scale': SCALE,
        'val_dataloader.num_workers': 0,
        'test_dataloader.dataset.pipeline.1.scale': SCALE,
        'param_scheduler.0.end': 10,
        'train_cfg.max_epochs': EPOCHS,
        'train_cfg.val_interval': EPOCHS + 1,
        'randomness.seed': 0,
    }
    training = poolformer_dense.train(config, overrides, work_dir=tmp_path_factory.mktemp(head))
    return config, training.checkpoint, overrides


@pytest.mark.parametrize('suffix', ['onnx', 'xml', 'pt2'])
def test_a_detectors_file_agrees_on_photographs(trained, tiny_coco, tmp_path, suffix):
    if suffix == 'xml' and find_spec('openvino') is None:
        pytest.skip('openvino is not installed')
    config, checkpoint, overrides = trained
    photographs = sorted(tiny_coco.glob('val2017/*.jpg'))
    path = tmp_path / f'model.{suffix}'
    exported = poolformer_dense.export(
        config, checkpoint, path, dynamic=True, nms=True, images=photographs, overrides=overrides
    )
    parity = exported.parity
    assert len(parity.sizes) == 50
    assert parity.total > 500
    assert parity.holds, parity
