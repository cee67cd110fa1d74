"""What was measured, as tables and as plain data for JSON."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from backbones import __version__

from .task import Row, Workload

PACKAGES = ('onedl-mmpretrain', 'timm', 'transformers', 'triton')


def best_of(rows: Sequence[Row]) -> list[Row]:
    """Return the fastest row of each name, in their order."""
    names = dict.fromkeys(row.name for row in rows)
    return [min((r for r in rows if r.name == n), key=lambda row: row.median) for n in names]


def describe_environment(device: str) -> dict[str, Any]:
    """Return what numbers depend on beside the workload, as plain data."""
    cuda = torch.device(device).type == 'cuda'
    return {
        'command': ' '.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        'poolformer-dense': __version__,
        'device': torch.cuda.get_device_name(device) if cuda else _cpu_name(),
        'threads': torch.get_num_threads(),
        'load average': os.getloadavg()[0],
        'python': platform.python_version(),
        'torch': torch.__version__,
        'cuda': torch.version.cuda,
        'cudnn.allow_tf32': torch.backends.cudnn.allow_tf32,
        'cudnn.benchmark': torch.backends.cudnn.benchmark,
        **{d.name: d.version for d in distributions() if d.name in PACKAGES},
    }


def table(workload: Workload, rows: Sequence[Row]) -> Table:
    """Return time and memory of every row; a star marks the better format of each name."""
    result = _table(str(workload), '', 'format')
    memory = 'MiB peak' if workload.on_cuda else 'MiB kept'
    _add_numbers(result, 'ms', 'min-max', memory, 'differs')
    best = best_of(rows)
    for previous, row in zip([None, *rows], rows, strict=False):
        if previous and previous.kind != row.kind:
            result.add_section()
        last = '' if row.difference is None else f'{row.difference:.1e}'
        if row.nbytes is not None:
            last = f'{row.nbytes / row.median / 1e9:.0f} GB/s'
        result.add_row(
            row.name,
            row.memory_format + ('*' if row in best else ''),
            milliseconds(row.median),
            f'{milliseconds(min(row.seconds))}-{milliseconds(max(row.seconds))}',
            '' if row.memory is None else f'{row.memory / 2**20:.1f}',
            last,
        )
    return result


def ratios(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Compare each row of ours with the better format of every peer and part.

    Returns:
        For each pair: ``speed``, how many times as fast ours is, by the medians; and ``memory``,
        ours over the other's, None where it does not apply.
    """
    others = [other for other in best_of(rows) if other.kind != 'ours']
    return [
        {
            'ours': row.name,
            'other': other.name,
            'format': other.memory_format,
            'speed': other.median / row.median,
            'memory': row.memory / other.memory if row.memory and other.memory else None,
        }
        for row in rows
        if row.kind == 'ours'
        for other in others
    ]


def ratio_table(rows: Sequence[Row]) -> Table:
    """Return `ratios` as a table, a column for each row of ours."""
    ours = [row.name for row in rows if row.kind == 'ours']
    result = _table('how many times as fast ours is (its memory over theirs)', 'than')
    _add_numbers(result, *ours)
    by_other: dict[str, list[str]] = {}
    for ratio in ratios(rows):
        memory = '' if ratio['memory'] is None else f' ({ratio["memory"]:.2f})'
        cells = by_other.setdefault(f'{ratio["other"]}, {ratio["format"]}', [])
        cells.append(f'{ratio["speed"]:.2f}x{memory}')
    for other, cells in by_other.items():
        result.add_row(other, *cells)
    return result


def as_dict(workload: Workload, rows: Sequence[Row]) -> dict[str, Any]:
    """Return everything measured as plain data for JSON: seconds and bytes."""
    best = best_of(rows)
    return {
        'workload': asdict(workload),
        'rows': [asdict(row) | {'median': row.median, 'best_format': row in best} for row in rows],
        'ratios': ratios(rows),
    }


def _table(title: str, *columns: str) -> Table:
    result = Table(title=title, title_justify='left', box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        result.add_column(column, no_wrap=True)
    return result


def _add_numbers(table: Table, *columns: str) -> None:
    for column in columns:
        table.add_column(column, justify='right', no_wrap=True)


def milliseconds(seconds: float) -> str:
    """Return milliseconds with three digits at least."""
    value = 1e3 * seconds
    return f'{value:.{max(0, 2 - math.floor(math.log10(value)))}f}'


def _cpu_name() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
    return names[0] if names else platform.machine()
