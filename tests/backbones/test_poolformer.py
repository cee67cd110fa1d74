"""PoolFormer as a backbone: sizes, outputs, freezing, gradients, registration."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest
import torch
from mmdet.models.roi_heads import SingleRoIExtractor
from mmengine.registry import MODELS, DefaultScope

from backbones import CAFormer, MetaFormer, PoolFormer

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), layer_scale_init=0.1)


# arXiv 2111.11418, Table 1, less the classifier, plus a norm for each of the four outputs.
@pytest.mark.parametrize(
    ('arch', 'parameters'),
    [
        ('s12', 11_403_200),
        ('s24', 20_876_992),
        ('s36', 30_350_784),
        ('m36', 55_404_864),
        ('m48', 72_705_792),
    ],
)
def test_parameter_count(arch, parameters):
    with torch.device('meta'):
        model = PoolFormer(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ('arch', 'layer_scale'),
    [('s12', 1e-5), ('s24', 1e-5), ('s36', 1e-6), ('m36', 1e-6), ('m48', 1e-6)],
)
def test_layer_scale_starts_as_published(arch, layer_scale):
    block = PoolFormer(arch, out_indices=(0,)).stages[0][0]
    for scale in (block.layer_scale1.scale, block.layer_scale2.scale):
        torch.testing.assert_close(scale, torch.full_like(scale, layer_scale))


def test_strides_and_channels():
    outputs = PoolFormer('s12').eval()(torch.randn(2, 3, 64, 96))
    assert [tuple(o.shape) for o in outputs] == [
        (2, 64, 16, 24),
        (2, 128, 8, 12),
        (2, 320, 4, 6),
        (2, 512, 2, 3),
    ]


@pytest.mark.parametrize('backend', ['reference', 'cpu'])
def test_outputs_are_contiguous(backend):
    outputs = PoolFormer(TINY, backend=backend).eval()(torch.randn(2, 3, 64, 96))
    assert all(o.is_contiguous() for o in outputs)


def test_regions_are_pooled_alike_on_every_backend():
    extractor = SingleRoIExtractor(
        dict(type='RoIAlign', output_size=7, sampling_ratio=0), TINY['dims'][0], [4]
    )
    image = torch.randn(2, 3, 64, 96)
    regions = torch.tensor([[0.0, 5, 9, 40, 50], [1, 20, 0, 90, 63]])
    model = PoolFormer(TINY, out_indices=(0,)).eval()
    pooled = []
    for backend in ('reference', 'cpu'):
        model.set_backend(backend)
        pooled.append(extractor(model(image), regions))
    torch.testing.assert_close(*pooled, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('size', [(127, 201), (33, 65), (32, 31)])
def test_odd_sizes(size):
    outputs = PoolFormer(TINY)(torch.randn(1, 3, *size))
    assert all(o.isfinite().all() for o in outputs)
    heights = [o.shape[2] for o in outputs]
    assert heights[0] == (size[0] + 4 - 7) // 4 + 1
    assert heights[1:] == [(h - 1) // 2 + 1 for h in heights[:-1]]


def test_input_channels():
    assert PoolFormer(TINY, in_channels=5)(torch.randn(1, 5, 32, 32))[0].shape[1] == 8


def test_only_what_an_output_needs_is_built():
    full = PoolFormer(TINY).eval()
    part = PoolFormer(TINY, out_indices=(1, 2)).eval()
    assert set(part.output_norms) == {'1', '2'}
    assert len(part.stages) == len(part.downsamples) == 3
    part.load_state_dict({k: full.state_dict()[k] for k in part.state_dict()})
    x = torch.randn(1, 3, 64, 64)
    for ours, theirs in zip(part(x), full(x)[1:3], strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 2, 3), (0, 2)])
def test_every_parameter_gets_a_gradient(out_indices):
    # DDP without find_unused_parameters needs a gradient tensor, be it zero, for each.
    model = PoolFormer(TINY, out_indices=out_indices)
    sum(o.square().mean() for o in model(torch.randn(2, 3, 64, 64))).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []


def test_only_the_first_norms_bias_is_dead():
    # Pooling maps a constant map to itself, so `pool(x) - x` cancels the bias of the norm before.
    model = PoolFormer(TINY).double()
    sum((o**3).mean() for o in model(torch.randn(2, 3, 64, 64).double())).backward()
    dead = {n for n, p in model.named_parameters() if p.grad.abs().max() < 1e-12}
    assert dead == {n for n, _ in model.named_parameters() if n.endswith('norm1.bias')}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(arch='s13'), r"unknown arch 's13'; choose from s12, s24, s36, m36, m48"),
        (dict(arch=dict(depths=(1, 1, 1, 1))), r'arch lacks dims'),
        (dict(arch=TINY | dict(depth=3)), r"unknown entries \['depth'\].*depths, dims"),
        (dict(arch=TINY | dict(dims=(8, 16, 24))), r'arch.dims must be four positive integers'),
        (
            dict(arch=TINY | dict(token_mixers=('Pooling',))),
            r'token_mixers must have one entry a st',
        ),
        (
            dict(token_mixers=dict(type='Pooling', pool_size=2)),
            r'pool_size must be a positive odd integer, got 2',
        ),
        (dict(out_indices=(0, 4)), r'out_indices must be rising .* got \(0, 4\)'),
        (dict(out_indices=(2, 1)), r'out_indices must be rising'),
        (dict(out_indices=()), r'out_indices must be rising'),
        (dict(drop_path_rate=1.0), r'drop_path_rate must be in \[0, 1\), got 1.0'),
        (dict(frozen_stages=5), r'frozen_stages must be from -1 \(nothing\) to 4'),
        (dict(frozen_stages=3, out_indices=(0, 1)), r'frozen_stages must be from -1 .* to 2'),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        PoolFormer(**(dict(arch=TINY) | arguments))


def test_unknown_argument_raises():
    with pytest.raises(TypeError, match='pool_sise'):
        PoolFormer(TINY, pool_sise=3)


@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 3, 4])
def test_frozen_stages(frozen_stages):
    model = PoolFormer(TINY, frozen_stages=frozen_stages, drop_path_rate=0.5)
    assert model.train() is model
    assert model.eval() is model
    model.train()
    prefixes = [f'downsamples.{i}.' for i in range(max(frozen_stages, 1))]
    prefixes += [f'stages.{i}.' for i in range(frozen_stages)]
    expected = {
        n
        for n, _ in model.named_parameters()
        if frozen_stages >= 0 and n.startswith(tuple(prefixes))
    }
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == expected
    for i, stage in enumerate(model.stages):
        assert all(m.training is (i >= frozen_stages) for m in stage.modules())


@pytest.mark.parametrize('frozen_stages', [-1, 0, 2])
def test_gradient_checkpointing_changes_nothing(frozen_stages):
    options = dict(frozen_stages=frozen_stages, drop_path_rate=0.5)
    plain = PoolFormer(TINY, **options)
    saving = PoolFormer(TINY, **options, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 64, 64)
    for model in (plain, saving):
        model.train()
        torch.manual_seed(1)
        sum(o.square().sum() for o in model(x)).backward()
    for (name, p), (_, q) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_gradient_checkpointing_saves_memory():
    def saved_bytes(with_cp):
        model = PoolFormer(TINY, with_cp=with_cp)
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model(torch.randn(1, 3, 64, 64))
        return total

    assert saved_bytes(True) < 0.5 * saved_bytes(False)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32, torch.float64])
def test_drop_path_rises_linearly_and_keeps_the_mean(dtype):
    """One over a rate to keep of 0.7 is 1.4286, and 1.4297 in bfloat16."""
    model = PoolFormer(TINY, drop_path_rate=0.4)
    found = model.draw_drops(torch.zeros(20_000, 3, 1, 1, dtype=dtype))
    assert found[0] is None
    for rate, drops in zip([0.1, 0.2, 0.3, 0.4], found[1:], strict=True):
        assert drops.dtype == torch.promote_types(dtype, torch.float32)
        assert drops.shape == (2, 20_000)
        assert drops.unique().tolist() == pytest.approx([0, 1 / (1 - rate)], rel=1e-6)
        assert drops.mean(1).tolist() == pytest.approx([1, 1], abs=0.03)
    flat = torch.stack(found[1:]).flatten(0, 1).double()
    assert flat.corrcoef().triu(1).abs().max() < 0.05  # each branch has a draw of its own


def test_drop_path_is_drawn_once_for_each_forward():
    """Blocks of frozen stages, and all in evaluation, drop nothing; a seed gives the same again."""
    model = PoolFormer(TINY, drop_path_rate=0.4, frozen_stages=2)
    seen = []
    for stage in model.stages:
        for block in stage:
            block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    x = torch.randn(8, 3, 64, 64)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    model.train()(x)
    assert seen[:2] == [None, None]
    drawn = torch.stack(seen[2:])
    torch.manual_seed(3)
    assert torch.equal(torch.stack(model.draw_drops(x)[2:]), drawn)
    seen.clear()
    torch.set_rng_state(state)
    model.eval()(x)
    assert seen == [None] * 5
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize('scope', ['mmdet', 'mmseg'])
def test_builds_in_each_toolbox(scope):
    pytest.importorskip(scope)
    name = f'test-{scope}'
    with DefaultScope.overwrite_default_scope(scope):
        DefaultScope.get_instance(name, scope_name=scope)
        registry = pytest.importorskip(f'{scope}.registry').MODELS
        model = registry.build(dict(type='PoolFormer', arch='s12', out_indices=(0, 1, 2, 3)))
    assert type(model) is PoolFormer
    assert MODELS.get('PoolFormer') is PoolFormer


@pytest.mark.parametrize('family', [MetaFormer, PoolFormer, CAFormer])
def test_every_argument_of_a_family_is_documented(family):
    arguments = inspect.signature(family).parameters
    assert len(arguments) > 10
    for name in arguments:
        assert f'\n    {name}: ' in inspect.getdoc(family), name
    assert 'arXiv' in PoolFormer.__doc__


@pytest.mark.parametrize('indices', [(0, 1, 2, 3), (1, 3)])
def test_widths_of_outputs_are_an_attribute(indices):
    model = PoolFormer(TINY, out_indices=indices)
    outputs = model(torch.zeros(1, 3, 32, 32))
    assert model.out_channels == tuple(x.shape[1] for x in outputs)


def test_neither_toolbox_is_imported():
    code = (
        'import sys, backbones\n'
        'print([m for m in ("mmdet", "mmseg", "mmcv", "poolformer_dense") if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd='.')
    assert done.stdout.strip() == '[]', done.stderr
