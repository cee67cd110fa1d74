"""A config that names an object store is refused before anything is read or written."""

from __future__ import annotations

import pytest
from mmengine.fileio import LocalBackend
from mmengine.fileio.backends import backends, prefix_to_backends

from poolformer_dense.config.load import load_config
from poolformer_dense.config.store_paths import refuse_stores
from poolformer_dense.errors import UserError
from poolformer_dense.runner.checkpoint_hook import AtomicCheckpointHook
from tests.poolformer_dense.runner import tiny


@pytest.fixture
def detection(root):
    return lambda **overrides: load_config(
        str(root / 'configs/demo/retinanet_poolformer_s12.py'), overrides
    )


PLACES = {
    'work_dir': 's3://b/run',
    'load_from': 'cluster:s3://b/a.pth',
    'default_hooks.checkpoint.out_dir': 'petrel://b',
    'default_hooks.logger.out_dir': 'gs://b',
    'data_root': 's3://b/coco/',
    'val_evaluator.ann_file': 's3://b/val.json',
    'train_dataloader.dataset.backend_args': dict(backend='petrel'),
    'train_dataloader.dataset.file_client_args': dict(backend='ceph'),
}


@pytest.mark.parametrize('place', PLACES)
def test_a_place_is_one_line(detection, place):
    with pytest.raises(UserError, match=r'object stores .* mount the bucket.*aws s3 cp') as caught:
        detection(**{place: PLACES[place]})
    assert '\n' not in str(caught.value)
    assert place.rpartition('.')[2] in str(caught.value) or place == 'data_root'


def test_what_is_added_later_is_seen(detection):
    cfg = detection()
    cfg.load_from = 's3://b/a.pth'
    with pytest.raises(UserError, match=r'load_from=s3:.*: object stores'):
        refuse_stores(cfg)


def test_servers_may_have_one(detection):
    backend = dict(type='MLflowVisBackend', artifact_location='s3://b', tracking_uri='s3://b')
    detection(**{'visualizer.vis_backends': [backend]})


def test_a_client_of_ones_own_reads(detection, monkeypatch):
    monkeypatch.setitem(prefix_to_backends, 's3', LocalBackend)
    monkeypatch.setitem(backends, 'petrel', LocalBackend)
    place = 'val_dataloader.dataset'
    own = {f'{place}.ann_file': 's3://b/a', f'{place}.backend_args': dict(backend='petrel')}
    detection(**own)
    for place in ('work_dir', 'load_from'):
        with pytest.raises(UserError, match=f'{place}=s3://b'):
            detection(**{place: 's3://b'})


def test_stock_tools_and_hooks_refuse_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='work_dir=s3://b: object stores'):
        tiny.tiny_runner('s3://b')
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match='out_dir=s3://b: object stores'):
        AtomicCheckpointHook(out_dir='s3://b')
