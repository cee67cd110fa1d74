"""What the benchmark compares, counts and reports; never how fast anything is."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from backbones import MetaFormer
from backbones.blocks import MetaFormerBlock
from backbones.presets import PRESETS, Arch
from poolformer_dense.errors import UserError
from poolformer_dense.measure.analysis import count_macs, count_saved_bytes
from poolformer_dense.measure.benchmark import (
    PEERS,
    TOLERANCE,
    Row,
    Workload,
    as_dict,
    compete,
    describe_environment,
    ratio_table,
    table,
)
from poolformer_dense.measure.benchmark.floors import BlockInputs, MatrixProducts, record_inputs
from poolformer_dense.measure.benchmark.task import FORMATS, Task, time_in_turn
from poolformer_dense.measure.kept_memory import kept_for_backward

LAYERS = (nn.Conv2d, nn.Linear)
SIZE = (64, 96)
WORKLOADS = [(task, dtype) for task in ('infer', 'train') for dtype in ('float32', 'bfloat16')]


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch) -> str:
    """A preset so small that its time is nothing; no peer has it."""
    monkeypatch.setitem(PRESETS, 'tiny', Arch(depths=(1, 2, 1, 1), dims=(8, 16, 24, 32)))
    return 'tiny'


@pytest.fixture
def altered(monkeypatch):
    """Let the contestant 'reference' be what a function makes of it."""

    def alter(change):
        def build(preset, reference):
            model = copy.deepcopy(reference)
            change(model)
            return model

        monkeypatch.setitem(PEERS, 'reference', build)

    return alter


@pytest.mark.parametrize(('task', 'dtype'), WORKLOADS)
def test_everyone_takes_part_and_agrees(tiny, task, dtype):
    rows, missing = compete(Workload(tiny, task, dtype, SIZE), ['reference'], rounds=3, turn=0.0)
    assert missing == []
    variants = ["ours, recompute='mlp'"] if task == 'train' else ['ours, fused']
    variants += ['ours, fused to bfloat16'] if (task, dtype) == ('infer', 'bfloat16') else []
    expected = [(name, 'contiguous') for name in ('ours', *variants)]
    for name in ('reference', 'matrix products'):
        expected += [(name, memory_format) for memory_format in FORMATS]
    assert [(row.name, row.memory_format) for row in rows] == expected
    assert [row.kind for row in rows] == ['ours'] * len(expected[:-4]) + ['peer'] * 2 + ['part'] * 2
    for row in rows:
        assert len(row.seconds) == 3
        assert min(row.seconds) > 0
        if row.kind != 'part':
            assert 0 <= row.difference <= TOLERANCE[dtype]
        assert (row.memory is not None) == (task == 'train' and row.kind != 'part')


def test_fused_operators_and_recomputation_keep_less(tiny):
    rows, _ = compete(Workload(tiny, 'train', 'float32', SIZE), ['reference'], rounds=1, turn=0.0)
    ours, recomputing, reference, *_ = (row.memory for row in rows)
    assert recomputing < ours < reference


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compilation_takes_part(tiny, monkeypatch, backend):
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend=backend))
    workload = Workload(tiny, 'train', 'bfloat16', SIZE)
    rows, missing = compete(workload, ['reference', 'compile'], rounds=1, turn=0.0)
    assert missing == []
    peers = {row.name: row for row in rows if row.kind == 'peer'}
    assert [*peers] == ['reference', 'reference, compiled']
    assert peers['reference, compiled'].memory <= peers['reference'].memory


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_a_different_function_is_refused(tiny, altered, dtype):
    altered(lambda model: nn.init.zeros_(model.stages[3][0].layer_scale1.scale))
    workload = Workload(tiny, 'infer', dtype, SIZE)
    with pytest.raises(
        UserError,
        match=r'reference .contiguous. at tiny .*: it does not .* in float32 they differ by',
    ):
        compete(workload, ['reference'], rounds=1, turn=0.0)


def test_a_different_backward_is_refused(tiny, altered):
    def halve_gradients(model):
        model.stages[1][0].register_full_backward_hook(
            lambda _, inputs, __: (inputs[0] / 2, *inputs[1:])
        )

    altered(halve_gradients)
    compete(Workload(tiny, 'infer', 'float32', SIZE), ['reference'], rounds=1, turn=0.0)
    with pytest.raises(UserError, match='does not compute what our reference does'):
        compete(Workload(tiny, 'train', 'float32', SIZE), ['reference'], rounds=1, turn=0.0)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda model: model.downsamples[0].requires_grad_(False), r'computes tensors of shapes'),
        (
            lambda model: model.output_norms.requires_grad_(False),
            r'trains 31,240 param.*, not 31,400',
        ),
        (lambda model: setattr(model, 'out_indices', (1, 2, 3)), r'computes tensors of shapes'),
    ],
    ids=['frozen stem', 'frozen norms', 'three stages'],
)
def test_less_work_is_refused(tiny, altered, change, message):
    altered(change)
    with pytest.raises(UserError, match=message):
        compete(Workload(tiny, 'train', 'float32', SIZE), ['reference'], rounds=1, turn=0.0)


def test_a_peer_without_the_preset_is_named_not_an_error(tiny):
    rows, missing = compete(Workload(tiny), ['timm', 'mmpretrain', 'hf'], rounds=1, turn=0.0)
    assert {row.kind for row in rows} == {'ours', 'part'}
    assert [line.split()[0] for line in missing] == ['timm', 'mmpretrain', 'transformers']
    assert all('no tiny' in line or 'not installed' in line for line in missing)


@pytest.mark.parametrize(
    ('workload', 'message'),
    [
        (Workload('poolformer_s13'), r'unknown preset poolformer_s13; choose from poolformer_s12'),
        (Workload('randformer_s12', size=SIZE), r'randformer_s12 .*: .*interpolate=True'),
    ],
)
def test_what_cannot_be_measured_is_named(workload, message):
    with pytest.raises(UserError, match=message):
        compete(workload, [], rounds=1, turn=0.0)


def test_low_precision_is_autocast_over_float32_weights(tiny):
    model = MetaFormer(tiny, backend='reference')
    seen = []
    model.stages[0][0].mlp.fc1.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    task = Task(model, torch.randn(1, 3, *SIZE), 'contiguous', Workload(tiny, dtype='bfloat16'))
    task.outcome()
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize('memory_format', FORMATS)
def test_weights_and_images_have_the_memory_format(tiny, memory_format):
    task = Task(MetaFormer(tiny), torch.randn(2, 3, *SIZE), memory_format, Workload(tiny))
    layout = FORMATS[memory_format]
    weight = task.model.downsamples[1].conv.weight
    assert task.image.is_contiguous(memory_format=layout)
    assert weight.is_contiguous(memory_format=layout)


def test_training_ends_without_gradients_and_inference_without_a_graph(tiny):
    image = torch.randn(1, 3, *SIZE)
    training = Task(MetaFormer(tiny), image, 'contiguous', Workload(tiny, 'train'))
    outcome = training.outcome()
    assert outcome.trained == sum(p.numel() for p in training.model.parameters())
    assert outcome.values[-1].shape == (8, 3, 7, 7)
    training()
    assert all(p.grad is None for p in training.model.parameters())
    inference = Task(MetaFormer(tiny), image, 'contiguous', Workload(tiny, 'infer'))
    assert not any(x.requires_grad for x in inference.forward())
    assert not inference.model.training


def test_memory_on_a_cpu_is_what_the_analysis_counts(tiny):
    model = MetaFormer(tiny)
    workload = Workload(tiny, 'train', size=SIZE, batch=1)
    task = Task(copy.deepcopy(model), torch.randn(1, 3, *SIZE), 'contiguous', workload)
    assert task.memory() == sum(count_saved_bytes(model, SIZE))


def test_bytes_kept_by_any_module():
    layer = nn.Linear(8, 16)
    with kept_for_backward(layer) as total:
        before = total()
        features = layer(torch.randn(4, 8)).relu()
        after = total()
    assert features.shape == (4, 16)
    assert before == 0
    assert after == 4 * (4 * 8 + 4 * 16)  # the input, and what ReLU returns; not the weight


@pytest.mark.parametrize('preset', ['poolformer_s12', 'caformer_s18'])
def test_the_products_are_those_of_the_network(preset):
    model = MetaFormer(preset, backend='reference').eval()
    image = torch.randn(1, 3, 64, 64)
    workload = Workload(preset, 'infer', size=(64, 64), batch=1)
    layers = record_inputs(model, image, workload, LAYERS)
    products = MatrixProducts(layers, 'channels_last', workload)
    with FlopCounterMode(display=False) as counter:
        products()
    tokens, dims = (16, 4), model.arch.dims[2:]  # the last stages: attention's own two products
    attention = sum(
        2 * n * n * dim * depth for n, dim, depth in zip(tokens, dims, (9, 3), strict=True)
    )
    expected = sum(count_macs(model, (64, 64)))
    assert counter.get_total_flops() / 2 == expected - (attention if 'ca' in preset else 0)


class Flops(TorchDispatchMode):
    """torch's counts without its FlopCounterMode, which does not go with torch.autograd.grad."""

    total = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        result = operator(*args, **(kwargs or {}))
        if (count := flop_registry.get(operator.overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def test_training_adds_two_products_to_each_but_for_the_image(tiny):
    model = MetaFormer(tiny, backend='reference')
    workload = Workload(tiny, 'train', 'bfloat16', SIZE, batch=2)
    layers = record_inputs(model, torch.randn(2, 3, *SIZE), workload, LAYERS)
    products = MatrixProducts(layers, 'contiguous', workload)
    with Flops() as counter:
        products()
    stem = 2 * (SIZE[0] // 4) * (SIZE[1] // 4) * 8 * 3 * 7 * 7
    assert counter.total / 2 == 3 * 2 * sum(count_macs(model, SIZE)) - stem
    assert {x.dtype for _, x, _, _ in products.work} == {torch.bfloat16}


def test_block_inputs_are_those_of_the_network(tiny):
    model = MetaFormer(tiny, backend='reference')
    workload = Workload(tiny, 'train', 'bfloat16', SIZE, batch=2)
    blocks = record_inputs(model, torch.randn(2, 3, *SIZE), workload, (MetaFormerBlock,))
    inputs = BlockInputs(blocks, 'cpu')
    elements = [2 * 384 * 8, 2 * 96 * 16, 2 * 96 * 16, 2 * 24 * 24, 2 * 6 * 32]
    assert [x.numel() for _, x, _ in inputs.work] == elements
    # the first of a stage comes from a convolution in bfloat16, the second from a sum in float32
    assert inputs.nbytes == 2 * sum(2 * n for n in elements) + 2 * 2 * elements[2]
    inputs.copy()
    inputs.mix()
    assert all(torch.equal(x, target) for _, x, target in inputs.work)


def test_turns_go_round():
    calls = []
    tasks = [lambda name=name: calls.append(name) for name in 'AB']
    seconds = time_in_turn(tasks, rounds=3, turn=0.0)
    assert [len(turns) for turns in seconds] == [3, 3]
    warm_up, rounds = calls[:4], calls[4:]
    assert warm_up == ['A', 'A', 'B', 'B']
    assert rounds == ['A', 'A', 'B', 'B'] * 3  # the first of each turn does not count


def _rows():
    return [
        Row('ours', 'ours', 'contiguous', (1.0, 3.0, 2.0), memory=100, difference=1e-6),
        Row('timm', 'peer', 'contiguous', (9.0, 9.0, 9.0), memory=400, difference=1e-6),
        Row('timm', 'peer', 'channels_last', (3.0, 3.0, 3.0), memory=200, difference=1e-6),
        Row('copy of inputs', 'part', 'channels_last', (0.5, 0.5, 0.5), nbytes=10**9),
    ]


def _printed(*tables) -> list[str]:
    console = Console(width=80)
    with console.capture() as capture:
        console.print(*tables)
    return [' '.join(line.split()) for line in capture.get().splitlines()]


def test_tables_fit_a_terminal_and_say_it_all():
    workload = Workload('poolformer_s12', 'train', 'bfloat16', SIZE)
    long = replace(_rows()[0], name="ours, recompute='mlp'", seconds=(12.345, 23.456))
    lines = _printed(table(workload, [*_rows(), long]), ratio_table(_rows()))
    assert 'poolformer_s12 train, 2x3x64x96, bfloat16 autocast' in lines
    assert 'ours contiguous* 2000 1000-3000 0.0 1.0e-06' in lines
    assert "ours, recompute='mlp' contiguous* 17900 12345-23456 0.0 1.0e-06" in lines
    assert 'timm channels_last* 3000 3000-3000 0.0 1.0e-06' in lines
    assert 'timm contiguous 9000 9000-9000 0.0 1.0e-06' in lines
    assert 'copy of inputs channels_last* 500 500-500 2 GB/s' in lines
    assert 'timm, channels_last 1.50x (0.50)' in lines


def test_json():
    workload = Workload('poolformer_s12', size=(128, 128))
    result = json.loads(
        json.dumps({'environment': describe_environment('cpu')} | as_dict(workload, _rows()))
    )
    assert result['environment']['threads'] == 1
    assert result['environment']['torch'] == torch.__version__
    assert result['workload']['size'] == [128, 128]
    ours, contiguous, channels_last, _ = result['rows']
    assert (ours['seconds'], ours['median']) == ([1.0, 3.0, 2.0], 2.0)
    assert (contiguous['best_format'], channels_last['best_format']) == (False, True)
    # By the medians, with the better format of each.
    against_timm, against_copy = result['ratios']
    assert against_timm == dict(
        ours='ours', other='timm', format='channels_last', speed=1.5, memory=0.5
    )
    assert (against_copy['speed'], against_copy['memory']) == (0.25, None)
