"""The Triton backend against the reference in float64.

Without a GPU the kernels run in Triton's interpreter, which tests/conftest.py switches on before
anything imports triton, and `watched_memory` looks for what it can't notice; with one they run
compiled.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from backbones import ops

triton = pytest.importorskip('triton', reason='the Triton compiler is not installed')
INTERPRETED = triton.knobs.runtime.interpret
DEVICES = [
    pytest.param(
        'cpu',
        marks=pytest.mark.skipif(not INTERPRETED, reason='needs TRITON_INTERPRET=1'),
        id='interpreter',
    ),
    pytest.param(
        'cuda',
        marks=pytest.mark.skipif(
            INTERPRETED or not torch.cuda.is_available(), reason='needs a GPU and no interpreter'
        ),
        id='gpu',
    ),
]
EPS = 1e-5
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill what the kernels are to write with NaN."""
    for owner, name in ((torch, 'empty_like'), (Tensor, 'new_empty')):
        allocate = getattr(owner, name)
        monkeypatch.setattr(
            owner, name, lambda *a, _new=allocate, **k: _new(*a, **k).fill_(math.nan)
        )


@pytest.fixture(autouse=True)
def _exact(repaired_bfloat16: None, watched_memory: None) -> Iterator[None]:
    """No TF32, in which torch's own float32 would be as inexact as any mistake; the same bits."""
    switches = torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False)
    with switches:
        yield


def inputs(
    name: str,
    shape: tuple[int, ...],
    mean: float = 0.5,
    std: float = 1.0,
    bias: bool = True,
    scale: bool = True,
    drop: bool = False,
) -> dict[str, Tensor | None]:
    """What an operator takes, in float64, and 'grad' of its output."""
    batch, dim = shape[:2]
    tensors = dict(
        x=torch.randn(shape) * std + mean,
        weight=torch.rand(dim) + 0.5,
        bias=torch.randn(dim) if bias else None,
    )
    if name == 'norm_mlp':
        tensors |= dict(
            w1=torch.randn(2 * dim, dim, 1, 1) / dim**0.5,
            b1=torch.randn(2 * dim) if bias else None,
            w2=torch.randn(dim, 2 * dim, 1, 1) / dim**0.5,
            b2=torch.randn(dim) if bias else None,
        )
    if name != 'modified_layer_norm':
        factors = torch.tensor([1.25, 0.0] * batch)[:batch]
        tensors |= dict(scale=torch.randn(dim) if scale else None, drop=factors if drop else None)
    return {k: None if v is None else v.double() for k, v in tensors.items()}


def call(name: str, tensors: dict[str, Tensor | None], **options: object) -> Tensor:
    if name == 'norm_mlp':
        return ops.norm_mlp(ops.MLPInputs(**tensors), EPS, **options)
    return getattr(ops, name)(**tensors, eps=EPS, **options)


def results(
    name: str,
    tensors: dict[str, Tensor | None],
    grad: Tensor,
    **options: object,
) -> dict[str, Tensor]:
    """The output and the gradient of every input that takes one."""
    leaves = {
        k: v if v is None or k == 'drop' else v.detach().requires_grad_()
        for k, v in tensors.items()
    }
    out = call(name, leaves, **options)
    out.backward(grad.to(out.dtype))
    grads = {k: v.grad for k, v in leaves.items() if v is not None and v.requires_grad}
    return {'out': out.detach(), **grads}


def error(result: Tensor, truth: Tensor) -> float:
    return float((result.double().cpu() - truth).norm() / (truth.norm() + 1e-30))


def check(
    name: str,
    tensors: dict[str, Tensor | None],
    dtype: torch.dtype,
    device: str,
    autocast: bool = False,
    **options: object,
) -> None:
    """Hold an operator to twice the error of torch's own, or a few roundings."""

    def to(dtype: torch.dtype, device: str = 'cpu') -> dict[str, Tensor | None]:
        return {k: None if v is None else v.to(device, dtype) for k, v in rounded.items()}

    stream = torch.float32 if autocast else dtype
    rounded = {k: None if v is None else v.to(stream) for k, v in tensors.items()}
    grad = torch.randn(tensors['x'].shape).to(stream)
    truth = results(name, to(torch.float64), grad, backend='reference')
    with torch.autocast(device, dtype, enabled=autocast):
        given, grad = to(stream, device), grad.to(device)
        ours = results(name, given, grad, backend='triton', **options)
        theirs = results(name, given, grad, backend='reference')
    for key, expected in truth.items():
        if name == 'pool_mix' and key == 'bias':
            assert not ours[key].any(), 'the gradient of the bias is exactly zero'
            continue
        assert ours[key].dtype == stream
        few = (30 if dtype == torch.float64 else 6) * torch.finfo(dtype).eps
        assert error(ours[key], expected) <= max(2 * error(theirs[key], expected), few), key


NAMES = ['modified_layer_norm', 'pool_mix', 'norm_mlp']


@pytest.mark.parametrize('dtype', DTYPES, ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_output_and_gradients_are_as_exact_as_torchs(
    name: str, dtype: torch.dtype, device: str
) -> None:
    dropped = {} if name == 'modified_layer_norm' else {'drop': True}
    check(name, inputs(name, (2, 12, 7, 9), **dropped), dtype, device)


@pytest.mark.parametrize('name', NAMES)
def test_vectors_may_have_strides(name: str, device: str) -> None:
    tensors = inputs(name, (2, 12, 5, 7), drop=name != 'modified_layer_norm')
    tensors = {k: None if v is None else v.to(device) for k, v in tensors.items()}
    strided = {
        k: v if v is None or v.dim() > 1 else torch.stack([v, v + 7], 1)[:, 0]
        for k, v in tensors.items()
    }
    grad = torch.randn_like(tensors['x'])
    dense, found = (results(name, t, grad, backend='triton') for t in (tensors, strided))
    assert all(torch.equal(dense[key], found[key]) for key in dense)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_autocast_keeps_the_stream_in_float32(name: str, dtype: torch.dtype, device: str) -> None:
    check(name, inputs(name, (2, 12, 3, 5)), dtype, device, autocast=True)


@pytest.mark.parametrize('size', [(1, 1), (1, 5), (6, 1), (2, 2), (33, 17)], ids=str)
@pytest.mark.parametrize('name', NAMES)
def test_any_size(name: str, size: tuple[int, int], device: str) -> None:
    check(name, inputs(name, (1, 3, *size)), torch.float32, device)


@pytest.mark.parametrize('dim', [1, 32, 96, 320])
@pytest.mark.parametrize('name', NAMES)
def test_any_number_of_channels(name: str, dim: int, device: str) -> None:
    check(name, inputs(name, (1, dim, 2, 2)), torch.float32, device)


@pytest.mark.parametrize('autocast', [False, True], ids=['plain', 'autocast'])
@pytest.mark.parametrize(('dim', 'fused'), [(20, True), (96, True), (20, False)])
def test_mlp_in_bfloat16(
    dim: int, fused: bool, autocast: bool, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one kernel, and as maps of many channels take it."""
    fused_mlp = pytest.importorskip('backbones.ops.backends.triton.fused_mlp')
    if not fused:
        monkeypatch.setattr(fused_mlp, 'MOST_CHANNELS', 0)
    tensors = inputs('norm_mlp', (2, dim, 9, 8), drop=True)
    for recompute in (False, True):
        check('norm_mlp', tensors, torch.bfloat16, device, autocast, recompute=recompute)
    tensors |= dict(bias=None, b1=None, b2=None, scale=None, drop=None)
    check('norm_mlp', tensors, torch.bfloat16, device, autocast)


@pytest.mark.parametrize(('mean', 'std'), [(1e3, 1.0), (0.0, 1e-4), (10.0, 1e-2)])
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'autocast'])
@pytest.mark.parametrize('name', NAMES)
def test_large_means_and_small_variances(
    name: str, autocast: bool, mean: float, std: float, device: str
) -> None:
    dtype = torch.bfloat16 if autocast else torch.float32
    check(name, inputs(name, (2, 8, 5, 4), mean, std), dtype, device, autocast=autocast)


@pytest.mark.parametrize('without', ['bias', 'scale'])
@pytest.mark.parametrize('name', NAMES)
def test_without_bias_or_scale(name: str, without: str, device: str) -> None:
    check(name, inputs(name, (2, 4, 3, 3), **{without: False}), torch.float32, device)


@pytest.mark.parametrize(('programs', 'expected'), [(1024, 4), (13, 6), (1, 16)])
def test_strips_of_pooling_meet(
    programs: int, expected: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that a program shares with others."""
    pool = pytest.importorskip('backbones.ops.backends.triton.pool')
    monkeypatch.setattr(pool, 'ROW', 64)
    monkeypatch.setattr(pool, 'PROGRAMS', programs)
    tensors = inputs('pool_mix', (1, 33, 14, 6), drop=True)
    _, _, rows, constants = pool._strips(tensors['x'])
    assert (rows, constants['COLUMNS'], constants['CHANNELS']) == (expected, 1, 64)
    check('pool_mix', tensors, torch.float32, device)


@pytest.mark.parametrize(
    ('name', 'dim', 'dtype'),
    [
        ('modified_layer_norm', 96, torch.float32),
        ('pool_mix', 96, torch.float32),
        ('norm_mlp', 160, torch.float32),
        ('norm_mlp', 160, torch.bfloat16),
        ('norm_mlp', 64, torch.bfloat16),
    ],
)
def test_many_programs_of_each_sample(
    name: str, dim: int, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips and blocks of channels: `watched_memory` sees whether one disturbs another."""
    norm = pytest.importorskip('backbones.ops.backends.triton.norm')
    monkeypatch.setattr(norm, 'MOMENTS', 256)  # several steps in a piece
    tensors = inputs(name, (2, dim, 19, 37), drop=name != 'modified_layer_norm')
    check(name, tensors, dtype, device)


def test_hidden_activations_computed_again_are_the_same(device: str) -> None:
    tensors = inputs('norm_mlp', (2, 12, 7, 9), drop=True)
    tensors = {k: v.to(device, torch.float32) for k, v in tensors.items()}
    grad = torch.randn(2, 12, 7, 9, device=device)
    kept, again = (
        results('norm_mlp', tensors, grad, backend='triton', recompute=r) for r in (False, True)
    )
    for key, value in kept.items():
        assert torch.equal(value, again[key]), key


@pytest.mark.parametrize('name', NAMES)
def test_layout_does_not_matter(name: str, device: str) -> None:
    tensors = inputs(name, (2, 6, 4, 5))
    tensors = {k: None if v is None else v.to(device, torch.float32) for k, v in tensors.items()}
    x, grad = tensors['x'], torch.randn(2, 6, 4, 5, device=device)
    expected = results(name, tensors, grad, backend='triton')
    gaps = torch.stack([x, x + 1], dim=-1)[..., 0]
    for other in (x.contiguous(memory_format=torch.channels_last), gaps):
        other_grad = grad.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)
        found = results(name, tensors | {'x': other}, other_grad, backend='triton')
        for key, value in expected.items():
            assert torch.equal(value, found[key]), key


@pytest.mark.parametrize('name', ['pool_mix', 'norm_mlp'])
def test_a_dropped_sample_passes_unchanged(name: str, device: str) -> None:
    tensors = inputs(name, (2, 6, 4, 5), drop=True)
    tensors = {k: v.to(device, torch.float32) for k, v in tensors.items()}
    grad = torch.randn(2, 6, 4, 5, device=device)
    found = results(name, tensors, grad, backend='triton')
    assert torch.equal(found['out'][1], tensors['x'][1])
    assert torch.equal(found['x'][1], grad[1])


@pytest.mark.parametrize('pieces', [1, 4, 16])
@pytest.mark.parametrize(('mean', 'std'), [(0.0, 1.0), (1e3, 1e-2), (-1e4, 1.0)])
def test_statistics_of_many_pieces(
    mean: float, std: float, pieces: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One piece of many steps, some of a few, and more pieces than there are elements for."""
    norm = pytest.importorskip('backbones.ops.backends.triton.norm')
    monkeypatch.setattr(norm, 'MOMENTS', 32)
    monkeypatch.setattr(norm, 'PIECES', pieces)
    x = torch.randn(2, 3, 9, 7).mul_(std).add_(mean).to(device)
    x = x.contiguous(memory_format=torch.channels_last)
    statistics, weight = norm.empty_statistics(x), torch.ones(3, device=device)
    found = norm.moments(x, EPS)
    assert found.pieces == min(pieces, 6)
    norm.normalize(x, statistics, weight, None, x.dtype, found)
    wide = x.double().flatten(1)
    close = dict(rtol=2**-24, atol=1e-7)
    torch.testing.assert_close(statistics.mean.double(), wide.mean(1), **close)
    expected = (wide.var(1, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(statistics.rstd.double(), expected, rtol=1e-6, atol=0)


def compile_kernels(root: Path, *arguments: object) -> list[str]:
    """A line for each variant, compiled in another process, where the interpreter is off."""
    result = subprocess.run(
        [sys.executable, root / 'tests' / 'ops' / 'compile_triton.py', *map(str, arguments)],
        env=os.environ | {'TRITON_INTERPRET': '0'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def spilled(line: str) -> int:
    return int(re.search(r'(\d+) spilled', line).group(1))


def test_kernels_compile_with_arguments_and_without(root: Path) -> None:
    """The first two calls differ in all that may be left out; the third has many channels."""
    lines = compile_kernels(root, 90, '--rows', 3)
    assert len({line.split(':')[0] for line in lines}) == 14
    assert not any(map(spilled, lines))


def test_more_sizes_of_images_take_no_more_compilations(root: Path) -> None:
    """By the keys of Triton's own cache."""
    one, many = compile_kernels(root, 90, '--sizes', 50)
    assert one.startswith('1 sizes: ')
    assert many == one.replace('1 sizes', '50 sizes')


def test_products_in_float32_follow_the_switch_of_convolutions() -> None:
    """They are convolutions; all others would follow the one of matrix products."""

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(
            self, function: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            names.append(function.name())
            return function(*args, **(kwargs or {}))

    mlp = pytest.importorskip('backbones.ops.backends.triton.mlp')
    if not INTERPRETED:
        pytest.skip('needs TRITON_INTERPRET=1')
    tensors = {k: v.float() for k, v in inputs('norm_mlp', (2, 12, 3, 5), drop=True).items()}
    given, names = ops.MLPInputs(**tensors), []
    with Calls():
        *_, statistics, hidden = mlp.norm_mlp_forward(given, EPS, torch.float32, True)
        mlp.norm_mlp_backward(given.x, given, statistics, hidden, torch.float32)
    convolutions = [name for name in names if 'convolution' in name]
    assert convolutions.count('aten::convolution') == 4
    assert convolutions.count('aten::convolution_backward') == 2
    assert not {'aten::mm', 'aten::addmm', 'aten::bmm', 'aten::mv', 'aten::addmv'} & {*names}


@pytest.mark.slow
@pytest.mark.parametrize('capability', [80, 90])
def test_kernels_compile_in_every_pair_of_circumstances(capability: int, root: Path) -> None:
    lines = compile_kernels(root, capability)
    assert len({line.split(':')[0] for line in lines}) == 14
    low = [line for line in lines if 'bf16' in line or 'fp16' in line]
    assert max(map(spilled, low)) <= (0 if capability == 90 else 256)
