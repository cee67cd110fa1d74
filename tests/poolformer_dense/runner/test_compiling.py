"""torch.compile by parts: few graphs for many sizes, and the same run."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from backbones import PoolFormer
from poolformer_dense.runner.compiling import compile_parts
from poolformer_dense.runner.runner import build_runner
from tests.poolformer_dense.runner import tiny


@pytest.fixture
def fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_sizes_share_graphs(root, shapes, tmp_path, fresh_dynamo):
    model = MODELS.build(tiny.demo_config(root, 'retinanet', shapes, tmp_path).model).eval()
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    names = set(model.state_dict())
    assert compile_parts(model, backend=count) == ['backbone', 'neck']
    sizes = list(itertools.product((256, 160, 224), (256, 192, 320, 352)))
    after = []
    for height, width in sizes:
        with torch.no_grad():
            model.extract_feat(torch.zeros(1, 3, height, width))
        after.append(len(graphs))
    assert after[0] == 2  # whole graphs: one of each part
    assert after[-1] == after[len(sizes) // 2] <= 8
    assert set(model.state_dict()) == names


def _train(folder: Path, root: Path, shapes: Path, **changes) -> tuple[dict[str, str], str]:
    overrides = {'train_cfg.max_epochs': 1, 'log_level': 'INFO'}
    cfg = tiny.demo_config(root, 'retinanet', shapes, folder, overrides)
    cfg.update(val_dataloader=None, val_cfg=None, val_evaluator=None, **changes)
    runner = build_runner(cfg)
    said = tiny.train_listening(runner)
    return tiny.digest(runner)['weights'], said


def test_a_compiled_training_is_the_same(runs, root, shapes):
    """By the eager backend, which leaves the arithmetic as it is."""
    plain = tiny.fork(runs / 'a', _train, runs / 'plain', root, shapes).result()
    options = dict(backend='eager')
    made = tiny.fork(runs / 'b', _train, runs / 'made', root, shapes, compile=options).result()
    assert made[0] == plain[0]
    assert 'torch.compile: backbone and neck' in made[1]
    assert 'torch.compile' not in plain[1]


@pytest.mark.slow
def test_the_mode_of_cuda_graphs_changes_no_result(fresh_dynamo):
    """As far as a CPU has it, which records no graph."""
    arch = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), layer_scale_init=0.1)
    model, image = nn.Module(), torch.randn(2, 3, 64, 64)
    model.backbone = PoolFormer(arch, out_indices=(3,))
    (expected,) = model.backbone(image)
    expected.square().sum().backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    assert compile_parts(model, mode='reduce-overhead', dynamic=False) == ['backbone']
    (found,) = model.backbone(image)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    found.square().sum().backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad - gradient).norm() <= 1e-2 * gradient.norm() + 1e-4


@pytest.mark.slow
def test_a_segmentor_is_tested_by_inductor(runs, root, shapes, fresh_dynamo):
    found = {}
    for compiled in (False, True):
        cfg = tiny.demo_config(root, 'fpn', shapes, runs / str(compiled))
        cfg.compile = compiled
        torch.manual_seed(0)
        found[compiled] = build_runner(cfg).test()
    assert found[True]['mIoU'] == pytest.approx(found[False]['mIoU'], abs=0.5)
