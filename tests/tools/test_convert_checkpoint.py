"""tools/convert_checkpoint.py as a user runs it."""

from __future__ import annotations

import pytest
import torch

from backbones import PoolFormer
from backbones.checkpoints import read_checkpoint, to_layout
from poolformer_dense.files import write_checkpoint


@pytest.fixture(scope='module')
def official(tmp_path_factory):
    """PoolFormer-S12 as the release has it, with a head, and its tensors by our names."""
    torch.manual_seed(0)
    ours = {k: v for k, v in PoolFormer('s12').state_dict().items() if 'output_norms' not in k}
    path = tmp_path_factory.mktemp('official') / 'poolformer_s12.pth.tar'
    torch.save(to_layout(ours, 'official') | {'head.bias': torch.ones(1000)}, path)
    return path, ours


@pytest.mark.parametrize(
    ('layout', 'name', 'first'),
    [
        ('timm', 'timm.safetensors', 'stem.conv.weight'),
        ('hf', 'hf.pth', 'poolformer.encoder.patch_embeddings.0.projection.weight'),
    ],
)
def test_there_and_back(run, official, tmp_path, layout, name, first):
    path, ours = official
    done = run('convert_checkpoint.py', path, name, '--to', layout, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'(official) -> {name} ({layout}): 128 tensors' in done.stdout
    assert 'left out: 1 tensors (head.bias)' in done.stdout
    assert first in read_checkpoint(tmp_path / name)

    done = run('convert_checkpoint.py', name, 'ours.pth', '--to', 'ours', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    back = read_checkpoint(tmp_path / 'ours.pth')['state_dict']
    assert back.keys() == ours.keys()
    assert all(torch.equal(back[k], v) for k, v in ours.items())


def test_names_of_released_weights_come_from_the_mirror(run, official, tmp_path):
    path, _ = official
    mirror = {'POOLFORMER_WEIGHTS': str(path.parent)}
    arguments = ('convert_checkpoint.py', 'poolformer_s12', 'mm.pth', '--to', 'mmpretrain')
    done = run(*arguments, cwd=tmp_path, env=mirror)
    assert done.returncode == 0, done.stderr
    assert 'backbone.patch_embed.proj.weight' in read_checkpoint(tmp_path / 'mm.pth')['state_dict']


def test_output_norms_without_a_place_are_named(run, tmp_path):
    tiny = PoolFormer(dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8))).state_dict()
    write_checkpoint({f'backbone.{k}': v for k, v in tiny.items()}, tmp_path / 'ours.pth')
    done = run('convert_checkpoint.py', 'ours.pth', 'hf.pth', '--to', 'hf', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'left out: 8 tensors (backbone.output_norms.0.weight, ' in done.stdout


@pytest.mark.parametrize(
    ('content', 'layout', 'message'),
    [
        (b'no checkpoint', 'timm', 'was not loaded'),
        (
            {'network.4.pos_embed': torch.ones(1, 8, 2, 2)},
            'hf',
            'the hf layout has no name for 1 tensors (position_embeddings.2.embedding)',
        ),
    ],
    ids=['text', 'not expressible'],
)
def test_errors_are_one_line_and_write_nothing(run, tmp_path, content, layout, message):
    source = tmp_path / 'source.pth'
    if isinstance(content, bytes):
        source.write_bytes(content)
    else:
        torch.save(content, source)
    done = run('convert_checkpoint.py', source, 'new.pth', '--to', layout, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count('\n') == 1
    assert [p.name for p in tmp_path.iterdir()] == ['source.pth']
