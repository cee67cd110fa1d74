"""From the stages' results to the tables of the documentation, and which default they support."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ...errors import UserError
from .backbone_times import PEER_NAMES

# Of the time of the best peer, compiled ones included, that Triton may take to be the default.
ENOUGH = 0.9

# What of the stage kernels must have run for it.
REQUIRED = ('tests', 'memcheck')


def report(folder: Path) -> str:
    """Return the tables in Markdown, then the conclusions.

    Raises:
        UserError: The folder holds no results.
    """
    results = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))}
    if not results:
        raise UserError(f'{folder} has no results: run tools/gpu_check.sh first')
    parts = [f'## {name}\n\n{_table(result["rows"])}' for name, result in results.items()]
    lines = [
        f'- {name}: {kind} {line}'
        for name, result in results.items()
        for kind in ('missing', 'failed')
        for line in result[kind]
    ]
    if lines:
        parts.append('## Left out or wrong\n\n' + '\n'.join(lines))
    return '\n\n'.join([*parts, '## Conclusions\n\n' + '\n'.join(conclusions(results))]) + '\n'


def conclusions(results: dict[str, Any]) -> list[str]:
    """Say for each task and dtype from which number of pixels `auto` may take Triton."""
    if any(result['dry'] for result in results.values()):
        return ['- None: this was a dry run, whose times mean nothing.']
    failed = [n for n, result in results.items() if result['failed'] or not result['ended']]
    if failed:
        return [f'- The default stays plain torch: {", ".join(failed)} failed or did not end.']
    if 'kernels' not in results or 'backbone' not in results:
        return ['- The default stays plain torch: kernels and backbone must both have run.']
    ran = {row['check'] for row in results['kernels']['rows']}
    unseen = [check for check in REQUIRED if check not in ran]
    if unseen:
        return [f'- The default stays plain torch: {", ".join(unseen)} of kernels did not run.']
    lines = []
    for task, dtype in sorted({(r['task'], r['dtype']) for r in results['backbone']['rows']}):
        ratios = _ratios(results['backbone']['rows'], task, dtype)
        told = ', '.join(f'{"x".join(map(str, shape))} {ratio:.2f}' for _, shape, ratio in ratios)
        lines.append(f'- {task}, {dtype}: {_verdict(ratios)} (of the best peer: {told})')
    return lines


def _ratios(
    rows: list[dict[str, Any]], task: str, dtype: str
) -> list[tuple[int, tuple[int, ...], float]]:
    """Pixels, shape, and the time of ours, run plainly, over the best peer's, by pixels."""
    found = []
    mine = [row for row in rows if (row['task'], row['dtype']) == (task, dtype)]
    for shape in {tuple(row['shape']) for row in mine}:
        times = {row['name']: row['ms'] for row in mine if tuple(row['shape']) == shape}
        best = min((t for name in PEER_NAMES if (t := times.get(name))), default=math.nan)
        ours = times.get('ours') or math.nan
        found.append((shape[0] * shape[2] * shape[3], shape, ours / best))
    return sorted(found)


def _verdict(ratios: list[tuple[int, tuple[int, ...], float]]) -> str:
    """Triton is the default from where on it is faster at all larger sizes too."""
    start = None
    for pixels, _, ratio in reversed(ratios):
        if not ratio <= ENOUGH:  # also if it is not a number
            break
        start = pixels
    if start is None:
        return 'auto keeps plain torch'
    return f'auto takes Triton from {start:,} pixels a batch'


def _table(rows: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ['| ' + ' | '.join(columns) + ' |', '|' + '---|' * len(columns)]
    for row in rows:
        cells = (_cell(row.get(column)) for column in columns)
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return ''
    if isinstance(value, list):
        return 'x'.join(map(str, value))
    return f'{value:.4g}' if isinstance(value, float) else str(value).replace('|', '/')
