"""Training with our backbone runs as with Hugging Face's PoolFormer under the same detector.

Both models start from the same weights and see the same batches; everything but the backbone is
built from the default RetinaNet config. Layer scales start at 0.1: at the published 1e-5 each block
is nearly the identity, and a wrong one would hardly be seen in the losses.

Training amplifies rounding: 50 iterations of the peer beside the peer itself, its weights changed
by 1e-7, end 2e-4 apart. So long runs are allowed more than short ones.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, PARAM_SCHEDULERS
from mmengine.runner import Runner, set_random_seed
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.checkpoints import to_layout
from poolformer_dense.measure.shapes import write_coco

transformers = pytest.importorskip('transformers')

LAYER_SCALE = 0.1
# of the losses, relative, at every iteration
TOLERANCE, TOLERANCE_OF_SHORT_RUNS = 1e-3, 1e-5
Losses = list[dict[str, float]]


class HuggingFacePoolFormer(nn.Module):
    """The adapter: Hugging Face's stages, then an output norm for each stage that is returned.

    Args:
        ours: The backbone whose sizes, weights and outputs it takes.
        **changes: Entries of `transformers.PoolFormerConfig`.
    """

    def __init__(self, ours: MetaFormer, **changes: object) -> None:
        super().__init__()
        dims = ours.arch.dims
        config = transformers.PoolFormerConfig(
            depths=ours.arch.depths, hidden_sizes=dims, **changes
        )
        self.peer = transformers.PoolFormerModel(config)
        self.norms = nn.ModuleDict({str(i): nn.GroupNorm(1, dims[i]) for i in ours.out_indices})
        weights = to_layout(ours.state_dict(), 'hf')  # leaves the output norms out
        self.peer.load_state_dict({k.removeprefix('poolformer.'): v for k, v in weights.items()})
        self.norms.load_state_dict(ours.output_norms.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        stages = self.peer(x, output_hidden_states=True).hidden_states
        return tuple(norm(stages[int(i)]) for i, norm in self.norms.items())


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def drawn_coco(tmp_path_factory) -> Path:
    """Drawn shapes, filed under COCO's 80 categories, so that the config fits as it is."""
    folder = tmp_path_factory.mktemp('drawn_coco')
    write_coco(folder, num_train=8, num_val=1, categories=CocoDataset.METAINFO['classes'])
    return folder


@pytest.fixture
def train_both(load) -> Callable[..., tuple[Losses, Losses]]:
    """Train with our backbone and with the peer, on the images of a folder in COCO's layout."""

    def train(
        data: Path, iterations: int, side: int = 256, **changes: object
    ) -> tuple[Losses, Losses]:
        cfg = load('retinanet_poolformer_s12')
        batches = draw_batches(cfg, data, iterations, side)
        cfg.model.backbone.init_cfg = None
        ours = MODELS.build(cfg.model)
        ours.init_weights()  # of neck and head
        for name, parameter in ours.backbone.named_parameters():
            if 'layer_scale' in name:
                nn.init.constant_(parameter, LAYER_SCALE)
        peer = copy.deepcopy(ours)
        peer.backbone = HuggingFacePoolFormer(ours.backbone, **changes)
        return train_model(cfg, ours, batches), train_model(cfg, peer, batches)

    return train


def draw_batches(cfg: Config, data: Path, iterations: int, side: int) -> list[dict]:
    """The first batches that the config's loader yields, with images of that many pixels."""
    loader_cfg = cfg.train_dataloader
    loader_cfg.update(batch_size=2, num_workers=0, persistent_workers=False)
    loader_cfg.dataset.data_root = str(data)
    [resize] = [step for step in loader_cfg.dataset.pipeline if step.type == 'Resize']
    resize.scale = (side, side)
    set_random_seed(0)  # of the flips
    loader = Runner.build_dataloader(loader_cfg, seed=0)
    batches = []
    for epoch in itertools.count():
        loader.batch_sampler.sampler.set_epoch(epoch)
        for batch in loader:
            batches.append(batch)
            if len(batches) == iterations:
                return batches


def train_model(cfg: Config, model: nn.Module, batches: Sequence[dict]) -> Losses:
    """Train with the optimizer and the warm-up of the config; return the losses of each batch."""
    optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    schedules = [dict(s, optimizer=optimizer) for s in cfg.param_scheduler if not s.by_epoch]
    schedules = [PARAM_SCHEDULERS.build(s) for s in schedules]
    model.train()
    losses = []
    for batch in batches:
        logged = model.train_step(copy.deepcopy(batch), optimizer)
        losses.append({name: value.item() for name, value in logged.items()})
        for schedule in schedules:
            schedule.step()
    return losses


def relative_errors(ours: Losses, peer: Losses) -> list[float]:
    """The largest relative difference among the losses of each iteration."""
    assert [step.keys() for step in ours] == [step.keys() for step in peer]
    return [
        max(abs(step[name] - other[name]) / abs(other[name]) for name in other)
        for step, other in zip(ours, peer, strict=True)
    ]


def assert_parity(ours: Losses, peer: Losses, iterations: int, tolerance: float) -> None:
    assert len(ours) == iterations
    assert all(step.keys() == {'loss', 'loss_cls', 'loss_bbox'} for step in ours)
    errors = relative_errors(ours, peer)
    first, last = ours[0]['loss'], ours[-1]['loss']
    print(f'PARITY loss {first:.4f} to {last:.4f}, largest relative error {max(errors):.1e}')
    assert max(errors) <= tolerance, errors


def test_on_drawn_shapes(train_both, drawn_coco):
    assert_parity(*train_both(drawn_coco, 4, side=128), 4, TOLERANCE_OF_SHORT_RUNS)


@pytest.mark.parametrize('change', [dict(pool_size=5), dict(hidden_act='relu')], ids=str)
def test_a_wrong_block_would_be_seen(train_both, drawn_coco, change):
    errors = relative_errors(*train_both(drawn_coco, 1, side=128, **change))
    assert errors[0] > 10 * TOLERANCE_OF_SHORT_RUNS


def test_on_photographs(train_both, tiny_coco):
    assert_parity(*train_both(tiny_coco, 3), 3, TOLERANCE_OF_SHORT_RUNS)


@pytest.mark.slow
def test_on_photographs_for_two_epochs(train_both, tiny_coco):
    assert_parity(*train_both(tiny_coco, 50), 50, TOLERANCE)
