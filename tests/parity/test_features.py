"""Features of all stages and gradients equal those of independent implementations.

Random weights of ours go to the peer by the converters, and its gradients come back by them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from backbones import MetaFormer
from backbones.checkpoints import from_layout, to_layout
from backbones.presets import FAMILIES

# Of 12 blocks in float64; rounding adds up with more. All agree to 1e-13.
TOLERANCE = 1e-10
# In float32, how far from the truth we may be, in terms of how far the peer is. Where our operators
# compute the blocks it is 1.2 times on average and 2.3 at most, over fifty draws: oneDNN sums long
# products in fewer parts as an inner product (errors of fc2 are 1.6 times those of a convolution)
# and as a convolution of channels-last maps (2 to 4 times). Elsewhere it is 1.0.
FACTOR = 3
PREFIX = {'timm': '', 'hf': 'poolformer.', 'mmpretrain': 'backbone.'}
IMAGE, ODD_IMAGE = (64, 96), (75, 101)
# What is compared beside the gradients of parameters.
OTHERS = ('image', 'stage 0', 'stage 1', 'stage 2', 'stage 3')

dtypes = pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
images = pytest.mark.parametrize('size', [IMAGE, ODD_IMAGE], ids=str)
Features = Callable[[Tensor], Sequence[Tensor]]


def sizes_of(*families: str) -> pytest.MarkDecorator:
    """All sizes of some families; those after the first are slow."""
    return pytest.mark.parametrize(
        'arch',
        [
            pytest.param(f'{family}_{size}', marks=[pytest.mark.slow] if i else [])
            for family in families
            for i, size in enumerate(FAMILIES[family])
        ],
    )


@dtypes
@images
@sizes_of('poolformer', 'poolformerv2', 'convformer', 'caformer')
def test_timm(timm: ModuleType, randomise, arch, size, dtype):
    ours = build_ours(arch, randomise)
    peer = getattr(timm, arch)(num_classes=0)
    load_strictly(peer, ours.state_dict(), 'timm')
    assert_parity(ours, peer, features_of_timm(peer), 'timm', size, dtype)


@dtypes
@images
@sizes_of('identityformer')
def test_timm_with_identity_mixers(timm: ModuleType, randomise, arch, size, dtype):
    ours = build_ours(arch, randomise)
    peer = basic_timm(timm, ours, nn.Identity)
    load_strictly(peer, ours.state_dict(), 'timm')
    assert_parity(ours, peer, features_of_timm(peer), 'timm', size, dtype)


@dtypes
@sizes_of('randformer')
def test_timm_with_the_formula_of_random_mixing(timm: ModuleType, randomise, arch, dtype):
    # timm lacks this family: its skeleton gets the formula of arXiv 2210.13452, section 2.2.
    class RandomMixing(nn.Module):
        def __init__(self, dim: int, **_: object) -> None:
            super().__init__()

        def forward(self, x: Tensor) -> Tensor:
            mixed = torch.einsum('nm,bcm->bcn', self.matrix, x.flatten(2))
            return mixed.reshape(x.shape)

    last = [dict(type='RandomMixing', resolution=r) for r in [(4, 6), (2, 3)]]  # of IMAGE
    ours = build_ours(arch, randomise, token_mixers=['IdentityMixing', 'IdentityMixing', *last])
    peer = basic_timm(timm, ours, [nn.Identity, nn.Identity, RandomMixing, RandomMixing])
    weights = ours.state_dict()
    for s in (2, 3):
        for b, block in enumerate(peer.stages[s].blocks):
            # a buffer, as it is frozen
            matrix = weights.pop(f'stages.{s}.{b}.token_mixer.matrix')
            block.token_mixer.register_buffer('matrix', matrix, persistent=False)
    load_strictly(peer, weights, 'timm')
    assert_parity(ours, peer, features_of_timm(peer), 'timm', IMAGE, dtype)


@dtypes
@images
@sizes_of('poolformer')
def test_hugging_face(transformers: ModuleType, randomise, arch, size, dtype):
    ours = build_ours(arch, randomise)
    config = transformers.PoolFormerConfig(depths=ours.arch.depths, hidden_sizes=ours.arch.dims)
    peer = transformers.PoolFormerModel(config)
    load_strictly(peer, ours.state_dict(), 'hf')

    def features(image: Tensor) -> Sequence[Tensor]:
        return peer(image, output_hidden_states=True).hidden_states

    assert_parity(ours, peer, features, 'hf', size, dtype)


@dtypes
@images
@sizes_of('poolformer')
def test_mmpretrain_with_output_norms(mmpretrain: ModuleType, randomise, arch, size, dtype):
    ours = build_ours(arch, randomise, output_norms=True)
    peer = mmpretrain.PoolFormer(arch.split('_')[1], out_indices=[0, 2, 4, 6], frozen_stages=-1)
    load_strictly(peer, ours.state_dict(), 'mmpretrain')
    assert_parity(ours, peer, peer, 'mmpretrain', size, dtype)


@pytest.mark.parametrize('arch', ['poolformer_s12', 'caformer_s18'])
def test_timm_drops_the_same_paths(timm: ModuleType, randomise, monkeypatch, arch):
    # Each has its own way to draw: timm gets our factors, where its rates are ours.
    ours = build_ours(arch, randomise, drop_path_rate=0.5)
    peer = getattr(timm, arch)(num_classes=0, drop_path_rate=0.5)
    load_strictly(peer, ours.state_dict(), 'timm')
    drops = ours.draw_drops(torch.empty(2, 0, dtype=torch.float64))
    monkeypatch.setattr(ours, 'draw_drops', lambda images: drops)
    for block, given in zip([b for s in peer.stages for b in s.blocks], drops, strict=True):
        if given is None:
            continue
        for name, factors in zip(('drop_path1', 'drop_path2'), given, strict=True):
            kept = 1 / (1 - getattr(block, name).drop_prob)
            assert all(factor in (0, pytest.approx(kept)) for factor in factors)
            setattr(block, name, GivenDropPath(factors))
    assert_parity(ours, peer, features_of_timm(peer), 'timm', IMAGE, torch.float64)


class GivenDropPath(nn.Module):
    def __init__(self, factors: Tensor) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factors.view(-1, *[1] * (x.ndim - 1))  # maps, or tokens (B, N, C)


def build_ours(
    arch: str, randomise: Callable, output_norms: bool = False, **options: object
) -> MetaFormer:
    """A backbone of ours whose every parameter is random, the scales of branches included."""
    model = MetaFormer(arch, **options)
    if not output_norms:  # most peers return features without them
        model.output_norms = nn.ModuleDict({i: nn.Identity() for i in model.output_norms})
    randomise(model)
    return model


def basic_timm(
    timm: ModuleType, ours: MetaFormer, token_mixers: type[nn.Module] | Sequence[type[nn.Module]]
) -> nn.Module:
    """timm's MetaFormer of our size, configured as its PoolFormerV2, with other mixers."""
    return timm.MetaFormer(
        num_classes=0,
        depths=ours.arch.depths,
        dims=ours.arch.dims,
        token_mixers=token_mixers,
        norm_layers=timm.GroupNorm1NoBias,
        use_mlp_head=False,
    )


def features_of_timm(model: nn.Module) -> Features:
    return lambda image: model.forward_intermediates(image, intermediates_only=True)


def load_strictly(peer: nn.Module, weights: Mapping[str, Tensor], layout: str) -> None:
    """Give a peer our weights: none is over, and only its head's norm gets none."""
    weights = to_layout(weights, layout)
    weights = {key.removeprefix(PREFIX[layout]): tensor for key, tensor in weights.items()}
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert [key for key in missing if not key.startswith('head.norm.')] == []


def assert_parity(
    ours: MetaFormer,
    peer: nn.Module,
    peer_features: Features,
    layout: str,
    size: tuple[int, int],
    dtype: torch.dtype,
) -> None:
    """Compare features, and the gradients of a random functional of all of them, in training mode.

    In float64 with the peer's. Two networks in float32 differ by the roundings of both, which no
    bound tells from a mistake; there each is compared with the peer in float64.
    """
    image = torch.randn(2, 3, *size)

    def run_peer(dtype: torch.dtype) -> dict[str, Tensor]:
        found = run_seeded(peer.to(dtype), peer_features, image.to(dtype))
        others = {name: found.pop(name) for name in OTHERS}
        return from_layout(found, layout) | others

    found = run_seeded(ours.to(dtype), ours, image.to(dtype))
    if dtype == torch.float64:
        truth = run_peer(dtype)
        bound = TOLERANCE * max(1, sum(ours.arch.depths) / 12)
    else:
        rounded, truth = run_peer(dtype), run_peer(torch.float64)
        bound = FACTOR * max(errors_of(rounded, truth, ours).values())
    errors = errors_of(found, truth, ours)
    worst = max(errors, key=errors.get)
    print(f'PARITY {dtype} {layout}: {worst} {errors[worst]:.1e}, bound {bound:.1e}')
    beyond = {name: f'{e:.1e}' for name, e in errors.items() if not e <= bound}
    assert not beyond, f'relative errors beyond {bound}: {beyond}'


def errors_of(
    found: Mapping[str, Tensor], truth: Mapping[str, Tensor], ours: MetaFormer
) -> dict[str, float]:
    """The largest difference of each tensor over the largest element of what `scale_of` says."""
    assert found.keys() == truth.keys()
    return {name: error(found[name], truth[name], scale_of(name, truth, ours)) for name in truth}


def scale_of(name: str, grads: Mapping[str, Tensor], ours: MetaFormer) -> Tensor:
    """What the error of a gradient is measured by: the gradient itself, but for two kinds.

    Both are sums that cancel, so that rounding is not small beside what is left of them.
    """
    if ours.arch.token_mixers[0] == 'Pooling' and name.endswith('.norm1.bias'):
        # Pooling cancels the shift entirely: measured by the gradient of the norm's factor.
        return grads[name.replace('bias', 'weight')]
    if grads[name].numel() == 1:
        # StarReLU's two scalars gather from all pixels, channels and samples, with both signs:
        # measured by the largest of them in the network.
        return torch.cat([grad for grad in grads.values() if grad.numel() == 1])
    return grads[name]


def run_seeded(model: nn.Module, features_of: Features, image: Tensor) -> dict[str, Tensor]:
    """Features, and gradients of what they depend on by its name, all as one table."""
    torch.manual_seed(1)
    model.train()
    inputs = {'image': image.requires_grad_()}
    inputs |= {k: p for k, p in model.named_parameters() if p.requires_grad}
    features = features_of(image)
    weights = [torch.randn(f.shape).to(f.dtype) for f in features]  # the same in every dtype
    loss = sum((f * w).mean() for f, w in zip(features, weights, strict=True))
    grads = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    found = {name: grad for name, grad in zip(inputs, grads, strict=True) if grad is not None}
    return found | dict(zip(OTHERS[1:], features, strict=True))


def error(value: Tensor, reference: Tensor, scale: Tensor) -> float:
    assert value.shape == reference.shape
    difference = (value - reference).abs().max()
    # where drop path skips a block for the whole batch, both are zero
    return (difference / scale.abs().max()).item() if difference != 0 else 0.0
