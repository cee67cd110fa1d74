"""The page's calculation of what several nodes cost is the tool's, and the formula's."""

from __future__ import annotations

import pytest
import torch

from backbones import MetaFormer
from backbones.presets import PRESETS
from poolformer_dense.measure.communication import (
    LINKS,
    all_reduce_seconds,
    format_communication,
    gradient_bytes,
)


@pytest.mark.parametrize(('nodes', 'factor'), [(1, 0), (2, 1), (4, 1.5), (8, 1.75)])
def test_a_ring_sends_each_byte_less_than_twice(nodes, factor):
    assert all_reduce_seconds(1e9, nodes, 1e9) == factor


def test_links_are_in_bytes():
    assert LINKS['10 Gbit/s'] == 1.25e9
    assert LINKS['NVLink'] == 450e9


def test_gradients_are_of_what_is_trained():
    model = MetaFormer('poolformer_s12')
    assert gradient_bytes('poolformer_s12') == sum(
        torch.zeros_like(parameter).nbytes for parameter in model.parameters()
    )


def test_the_share_of_a_step():
    line = format_communication(['poolformer_s12'], nodes=2, step=1.0).splitlines()[-1]
    megabytes = gradient_bytes('poolformer_s12') / 1e6
    milliseconds = megabytes / 125 * 1000
    assert line.startswith(
        f'| poolformer_s12 | {megabytes:.0f} MB | {milliseconds:.0f} ({milliseconds / 1000:.1%}) |'
    )


def test_the_page_holds_what_the_tool_prints(root):
    page = (root / 'docs/clusters.md').read_text()
    assert format_communication(PRESETS, 2) in page
    assert format_communication(['poolformer_s12'], 2, 0.831) in page
