"""What a backbone costs, by stage: parameters, multiply-accumulates, memory kept for backward."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.registry import MODELS
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from backbones import MetaFormer
from backbones.blocks import MetaFormerBlock
from backbones.presets import PRESETS

from ..config.load import load_config
from ..errors import UserError
from .kept_memory import kept_for_backward

MIN_SIDE = 32


@dataclass(frozen=True)
class Cost:
    """The cost of a stage, or of a whole backbone.

    Attributes:
        parameters: Their number, the frozen ones included.
        frozen: Those that need no gradient.
        macs: Multiply-accumulates of one image's forward, as `count_macs` counts.
        saved_bytes: What one image's training forward keeps, as `count_saved_bytes` counts.
    """

    parameters: int
    frozen: int
    macs: int
    saved_bytes: int


@dataclass(frozen=True)
class Analysis:
    """The costs of a backbone at one image size.

    Attributes:
        name: The preset or config.
        size: Height and width of the image in pixels.
        stages: A cost for each stage, with the downsampling before and the output norm after it.
        backends: Which backend of `backbones.ops` computes the token mixing and the MLP of each
            stage on the device of the analysis.
        model_parameters: Of the whole detector or segmentor; None for a preset.
    """

    name: str
    size: tuple[int, int]
    stages: tuple[Cost, ...]
    backends: tuple[tuple[str, str], ...]
    model_parameters: int | None

    @property
    def total(self) -> Cost:
        """The sum over the stages."""
        rows = [asdict(stage) for stage in self.stages]
        return Cost(**{name: sum(row[name] for row in rows) for name in rows[0]})

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self) | {'total': asdict(self.total)}


def analyze(target: str, size: Sequence[int] = (224, 224)) -> Analysis:
    """Analyze a preset's backbone, or the backbone of a config's detector or segmentor.

    Args:
        target: A name of `backbones.presets.PRESETS`, or the path of a config.
        size: Height and width of the image in pixels.

    Raises:
        UserError: There is no such preset or config, its backbone is no `MetaFormer`, or it can't
            process images of this size.
    """
    height, width = size
    if min(height, width) < MIN_SIDE:
        raise UserError(f'--size {height} {width}: stage 4 needs sides of at least {MIN_SIDE}')
    backbone, model_parameters = _build(target)
    try:
        macs = count_macs(backbone, size)
        saved = count_saved_bytes(backbone, size)
    except ValueError as error:
        raise UserError(f'{target} at {height}x{width}: {error}') from error
    stages = []
    for i in range(len(backbone.stages)):
        parameters = [p for module in _stage(backbone, i) for p in module.parameters()]
        frozen = [p for p in parameters if not p.requires_grad]
        stages.append(Cost(_numel(parameters), _numel(frozen), macs[i], saved[i]))
    device = next(backbone.parameters()).device.type
    first = [cast(MetaFormerBlock, next(stage.children())) for stage in backbone.stages]
    backends = tuple(block.backends(device) for block in first)
    return Analysis(target, (height, width), tuple(stages), backends, model_parameters)


def count_macs(backbone: MetaFormer, size: Sequence[int]) -> list[int]:
    """Count the multiply-accumulates of one image's forward by stage, as `counted_macs` does.

    Args:
        backbone: On any device, ``meta`` included; left as it is.
        size: Height and width of the image in pixels.
    """
    backbone = copy.deepcopy(backbone).eval()
    backbone.set_backend('reference')  # the counter does not know our operators
    with counted_macs() as total:
        return _growth_by_stage(backbone, size, total)


@contextlib.contextmanager
def counted_macs() -> Iterator[Callable[[], int]]:
    """Count the multiply-accumulates of what is computed in this context, without gradients.

    Convolutions, linear layers, products of matrices and both products of attention count; norms,
    activations, pooling and resizing do not.

    Yields:
        A function that returns how many there were so far.
    """
    # torch's counter does not know the fused kernel of attention for CPUs, so its products are
    # spelled out.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        yield lambda: counter.get_total_flops() // 2


def count_saved_bytes(backbone: MetaFormer, size: Sequence[int]) -> list[int]:
    """Count the bytes that the training forward of one image keeps for backward, by stage.

    Each storage counts once, in the stage that keeps it first, and as a whole, for it stays as a
    whole. The image counts; parameters and buffers do not.

    Args:
        backbone: Not on ``meta``; left as it is.
        size: Height and width of the image in pixels.
    """
    backbone = copy.deepcopy(backbone).train()
    with kept_for_backward(backbone) as total:
        return _growth_by_stage(backbone, size, total)


def format_analysis(analysis: Analysis) -> str:
    """Return the analysis as a table to print."""
    rows: list[tuple[str, ...]] = [
        ('stage', 'parameters', 'of them frozen', 'GMACs', 'saved MiB', 'mixing', 'MLP')
    ]
    named = [(str(i), cost) for i, cost in enumerate(analysis.stages, start=1)]
    backends = [*analysis.backends, ('', '')]
    for (name, cost), pair in zip([*named, ('backbone', analysis.total)], backends, strict=True):
        gmacs, mib = f'{cost.macs / 1e9:.3f}', f'{cost.saved_bytes / 2**20:.1f}'
        rows.append((name, f'{cost.parameters:,}', f'{cost.frozen:,}', gmacs, mib, *pair))
    if analysis.model_parameters is not None:
        rows.append(('whole model', f'{analysis.model_parameters:,}'))
    lines = ['{}: one image of {}x{}'.format(analysis.name, *analysis.size)]
    for name, *cells in rows:
        lines.append(f'{name:<11}' + ''.join(f'{cell:>15}' for cell in cells).rstrip())
    return '\n'.join(lines)


def _build(target: str) -> tuple[MetaFormer, int | None]:
    if target in PRESETS:
        return MetaFormer(target), None
    if not Path(target).is_file():
        raise UserError(
            f'{target} is neither a config file nor a preset; presets are {", ".join(PRESETS)}'
        )
    cfg = load_config(target)
    if 'model' not in cfg:
        raise UserError(f'config {target} has no model; name a config at the top of configs/')
    model = MODELS.build(cfg.model)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, MetaFormer):
        raise UserError(
            f'config {target}: model.backbone is of type {type(backbone).__name__}, not one of '
            "this project's backbones, whose stages this tool tells apart"
        )
    return backbone, _numel(model.parameters())


def _stage(backbone: MetaFormer, index: int) -> list[nn.Module]:
    named = (backbone.position_embeddings, backbone.output_norms)
    modules = [group[str(index)] for group in named if str(index) in group]
    return [backbone.downsamples[index], backbone.stages[index], *modules]


def _growth_by_stage(
    backbone: MetaFormer, size: Sequence[int], total: Callable[[], int]
) -> list[int]:
    """Run the backbone on noise, and return how much ``total`` grows in each stage."""
    stem: Any = backbone.downsamples[0].conv
    image = torch.randn(1, stem.in_channels, *size, device=stem.weight.device)
    marks = []
    for downsample in backbone.downsamples:
        downsample.register_forward_pre_hook(lambda *_: marks.append(total()))
    outputs = backbone(image)  # kept: the graph lives until the last mark
    marks.append(total())
    del outputs
    return [after - before for before, after in itertools.pairwise(marks)]


def _numel(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)
