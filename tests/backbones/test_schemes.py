"""Whatever a run loads goes through our reader; only a tool's flag lets a file run."""

from __future__ import annotations

import os
import subprocess
import sys

import mmengine.runner.checkpoint
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from mmengine.runner.checkpoint import CheckpointLoader
from torch import nn

from backbones import PoolFormer
from backbones.checkpoints import CheckpointError, read_checkpoint, safe_reading, schemes, to_layout
from poolformer_dense import files


@pytest.fixture
def evil(tmp_path):
    """A checkpoint that makes the folder ``harmed`` beside it when it is run."""

    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'harmed'),)

    path = tmp_path / 'evil.pth'
    weights = PoolFormer(dict(depths=(1,) * 4, dims=(8,) * 4)).state_dict()
    torch.save({'state_dict': to_layout(weights, 'ours'), 'meta': Payload()}, path)
    return path


SOURCES = {
    'torchvision://resnet50': 'get_torchvision_models',
    'modelzoo://resnet50': 'get_torchvision_models',
    'open-mmlab://resnet50': 'get_external_models',
    'openmmlab://resnet50': 'get_external_models',
    'mmcls://resnet50': 'get_mmcls_models',
}


@pytest.mark.parametrize('source', SOURCES)
def test_names_of_mmengine_are_vetted(evil, tmp_path, monkeypatch, source):
    monkeypatch.setattr(schemes, SOURCES[source], lambda: {'resnet50': 'https://x/evil.pth'})
    monkeypatch.setattr('backbones.checkpoints.schemes.fetch', lambda source: evil)
    with safe_reading(), pytest.raises(CheckpointError, match='never run'):
        load_checkpoint(nn.Linear(1, 1), source)
    assert not (tmp_path / 'harmed').exists()
    with pytest.raises(CheckpointError, match=r'has no vgg; give a path or a URL'):
        read_checkpoint(source.replace('resnet50', 'vgg'))


@pytest.mark.parametrize(
    'source', ['s3://bucket/a.pth', 'cluster:s3://bucket/a.pth', 'petrel://a.pth', 'gs://b/a.pth']
)
def test_object_stores_are_refused(source):
    with safe_reading(), pytest.raises(CheckpointError, match=r'aws s3 cp.*give its path'):
        load_checkpoint(nn.Linear(1, 1), source)


def test_no_loader_of_mmengine_is_left_and_all_come_back():
    before = dict(CheckpointLoader._schemes)
    with safe_reading():
        assert len(CheckpointLoader._schemes) >= 10
        assert len(set(CheckpointLoader._schemes.values())) == 1
        with pytest.raises(CheckpointError, match=r'pavi://.*download it.*and give its path'):
            CheckpointLoader.load_checkpoint('pavi://x')
    assert CheckpointLoader._schemes == before


def test_mmcls_names_give_the_backbone(tmp_path, monkeypatch):
    path = tmp_path / 'mmcls.pth'
    torch.save({'state_dict': {'backbone.a': torch.ones(1), 'head.b': torch.ones(1)}}, path)
    monkeypatch.setattr(schemes, 'get_mmcls_models', lambda: {'x': 'https://x/mmcls.pth'})
    monkeypatch.setattr('backbones.checkpoints.schemes.fetch', lambda source: path)
    assert list(read_checkpoint('mmcls://x')['state_dict']) == ['a']


def test_the_reader_runs_a_file_only_when_told_to(evil, tmp_path):
    with safe_reading(), pytest.raises(CheckpointError, match='never run'):
        load_checkpoint(nn.Linear(1, 1), str(evil))
    assert not (tmp_path / 'harmed').exists()
    with safe_reading(unsafe=True):
        load_checkpoint(nn.Linear(1, 1), str(evil))
    assert (tmp_path / 'harmed').exists()


def test_unsafe_covers_no_damage(tmp_path):
    path = tmp_path / 'sealed.pth'
    files.save_sealed({'a': torch.ones(100)}, path)
    assert read_checkpoint(str(path), unsafe=True)['a'].sum() == 100
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    for unsafe in (False, True):
        with pytest.raises(CheckpointError, match='its checksum is wrong'):
            read_checkpoint(str(path), unsafe=unsafe)


def test_the_flag_is_a_tools_and_warns(run, evil, tmp_path):
    arguments = ('convert_checkpoint.py', evil, 'new.pth', '--to', 'timm')
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count('\n') == 1
    assert '--unsafe-load' in done.stderr
    assert not (tmp_path / 'harmed').exists()
    done = run(*arguments, '--unsafe-load', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith('warning: --unsafe-load runs the code')
    assert (tmp_path / 'harmed').exists()


STOCK = """
import sys
import torch
from mmengine.runner import load_checkpoint
real, calls = torch.load, []
def load(*arguments, **options):
    calls.append(options.get('weights_only'))
    return real(*arguments, **options)
torch.load = load
model = torch.nn.Linear(2, 1)
checkpoint = load_checkpoint(model, sys.argv[1], map_location='cpu', strict=True)
assert calls == [True], calls
assert not [name for name in sys.modules if name.split('.')[0] in ('backbones', 'poolformer_dense')]
assert model.weight.tolist() == [[1.0, 2.0]]
assert checkpoint['message_hub']['log_scalars']['loss'].mean() == 3.0
"""


def test_stock_mmengine_reads_what_we_save(tmp_path):
    if not hasattr(mmengine.runner.checkpoint, 'get_torch_safe_globals'):
        pytest.skip('this mmengine does not try the restricted unpickler')
    log = HistoryBuffer([2.0, 4.0], [1, 1])
    model = nn.Linear(2, 1)
    model.weight.data = torch.tensor([[1.0, 2.0]])
    path = tmp_path / 'iter_1.pth'
    hub = {'log_scalars': {'loss': log}}
    files.save_sealed({'state_dict': model.state_dict(), 'message_hub': hub}, path)
    done = subprocess.run(
        [sys.executable, '-I', '-c', STOCK, str(path)],
        cwd=tmp_path, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'Falling back' not in done.stdout + done.stderr
