"""What is counted, and that docs/kernels.md shows it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from poolformer_dense.measure.launches import LaunchCounter, count_step, launch_table

pytest.importorskip('triton', reason='the Triton compiler is not installed')


def test_launches_calls_and_bytes_of_torchs_operators() -> None:
    x, weight = torch.ones(2, 4, 8, 8), torch.ones(4, 4, 1, 1)
    with LaunchCounter() as counter:
        y = (x + 1).view(2, -1).t().contiguous()
        y.mul_(weight.new_ones(1).expand(2))
        F.conv2d(x, weight, weight[0, :, 0, 0])
    kinds = ['aten::add', 'aten::clone', 'aten::new_ones', 'aten::mul_', 'aten::convolution']
    assert counter.names == kinds
    size, matrix = 4 * x.numel(), 4 * weight.numel()
    assert (counter.total.launches, counter.total.operators) == (6, 5)
    biased = 2 * size + matrix + 4 * 4 + 2 * size  # a pass of its own
    assert counter.total.nbytes == 2 * size + 2 * size + 4 + (2 * size + 4) + biased


def test_a_step_takes_half_the_launches_that_it_took() -> None:
    """It took 737, by the same counter."""
    step = count_step('poolformer_s12', 'triton')
    assert step.launches <= 737 / 2
    plain = count_step('poolformer_s12', 'reference')
    assert step.operators < plain.operators / 4
    assert step.nbytes < 0.6 * plain.nbytes


def test_drop_path_takes_three_launches_a_step() -> None:
    """It took four a block, two for each branch."""
    without, dropped = (
        count_step('poolformer_s12', 'triton', drop_path_rate=rate) for rate in (0.0, 0.1)
    )
    assert dropped.launches - without.launches == 3


def test_the_documentation_shows_what_is_counted(root: Path) -> None:
    """`tools/count_launches.py` prints the table."""
    assert launch_table() in (root / 'docs' / 'kernels.md').read_text()
