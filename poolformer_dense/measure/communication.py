"""A calculation, no measurement: what averaging the gradients over several nodes costs."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from backbones import MetaFormer

# Bytes per second in one direction. NVLink: 900 GB/s in both directions, by the H100's data sheet.
LINKS = {f'{speed} Gbit/s': speed * 1e9 / 8 for speed in (1, 10, 25, 100, 200)} | {'NVLink': 450e9}
_BYTES = 4  # DDP averages gradients in the type of the weights: float32, under autocast too


def all_reduce_seconds(size: float, nodes: int, bandwidth: float) -> float:
    """The least time in which a ring of nodes can sum what each of them holds.

    In a ring each node sends and receives 2 (n - 1) / n of the data (Patarasuk and Yuan, Bandwidth
    optimal all-reduce algorithms for clusters of workstations, 2009). Latency and the links within
    a node are left out.

    Args:
        size: Bytes that each node holds.
        nodes: At least 1.
        bandwidth: Of the link of one node, in bytes per second and direction.
    """
    return 2 * (nodes - 1) / nodes * size / bandwidth


def gradient_bytes(preset: str) -> int:
    """Bytes of the gradients of a backbone with the output norms of all stages."""
    with torch.device('meta'):
        model = MetaFormer(preset)
    return _BYTES * sum(p.numel() for p in model.parameters() if p.requires_grad)


def format_communication(presets: Iterable[str], nodes: int, step: float | None = None) -> str:
    """Return a table in Markdown: milliseconds of one all-reduce for each preset and link.

    Args:
        presets: Names of backbones.
        nodes: How many take part.
        step: The time of a training step without communication, in seconds; adds to each time its
            share of that.
    """
    rows = [['backbone', 'gradients', *LINKS], ['---', *['--:'] * (len(LINKS) + 1)]]
    for preset in presets:
        size = gradient_bytes(preset)
        seconds = [all_reduce_seconds(size, nodes, bandwidth) for bandwidth in LINKS.values()]
        rows.append([preset, f'{size / 1e6:.0f} MB', *(_cell(s, step) for s in seconds)])
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def _cell(seconds: float, step: float | None) -> str:
    milliseconds = 1000 * seconds
    text = f'{milliseconds:,.0f}' if milliseconds >= 10 else f'{milliseconds:.1f}'
    return text if step is None else f'{text} ({seconds / step:.1%})'
