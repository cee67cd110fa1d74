"""What a stage is told, and what it finds."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Setting:
    """How stages run.

    Attributes:
        dry: On a CPU, with tiny shapes: every code path that there is one for, and no figures.
        until: When `time.monotonic` says this, nothing more is begun that takes minutes.
    """

    dry: bool
    until: float = math.inf

    @property
    def device(self) -> str:
        return 'cpu' if self.dry else 'cuda'

    @property
    def backend(self) -> str:
        """Ours; Triton's interpreter would take minutes, and the kernels' own stages use it."""
        return 'auto' if self.dry else 'triton'

    def pick(self, real: Any, dry: Any) -> Any:
        """Return what a GPU gets, or the smaller thing of a dry run."""
        return dry if self.dry else real


@dataclass
class StageResult:
    """What a stage finds; each row is in the file at once, since a stage may be killed.

    Attributes:
        stage: Its name.
        dry: Whether its figures mean nothing.
        path: The file, JSON.
        rows: Of a table.
        missing: What was left out, and why.
        failed: What is not as it must be.
        ended: Whether the stage came to its end.
    """

    stage: str
    dry: bool
    path: Path
    rows: list[dict[str, Any]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    ended: bool = False

    def __post_init__(self) -> None:
        self.write()

    def add(self, **row: Any) -> None:
        """Add a row; a later one may have other columns."""
        self.rows.append(row)
        self.write()

    def has_time(self, setting: Setting, what: object) -> bool:
        """Whether something may be begun; note that it was left out, if not."""
        left = time.monotonic() <= setting.until
        if not left:
            self.missing.append(f'no time for {what}')
        return left

    def check(self, right: bool, what: str) -> None:
        """Note what is not as it must be."""
        if not right:
            self.failed.append(what)

    def end(self) -> None:
        """Say that nothing more comes."""
        self.ended = True
        self.write()

    def write(self) -> None:
        """Write what was found until now."""
        found = {k: v for k, v in vars(self).items() if k != 'path'}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(found, indent=2) + '\n')

    def show(self, console: Console) -> None:
        """Print a table, then what is missing and what failed."""
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        title = f'{self.stage} (dry: times mean nothing)' if self.dry else self.stage
        table = Table(*columns, title=title)
        for row in self.rows:
            table.add_row(*(_text(row.get(column, '')) for column in columns))
        console.print(table)
        for line in self.missing:
            console.print(f'missing: {line}', soft_wrap=True, markup=False)
        for line in self.failed:
            console.print(f'FAILED: {line}', soft_wrap=True, markup=False)


def median_milliseconds(
    run: Callable[[], object], setting: Setting, repeats: int = 10, calls: int = 10
) -> float:
    """The median time of a call, by events on a GPU around some calls.

    Around one, the time would be in it that the GPU waits for the first launch.
    """
    run()
    times = []
    for _ in range(setting.pick(repeats, 1)):
        if setting.dry:
            start = time.perf_counter()
            run()
            times.append(1e3 * (time.perf_counter() - start))
            continue
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(calls):
            run()
        last.record()
        torch.cuda.synchronize()
        times.append(first.elapsed_time(last) / calls)
    return statistics.median(times)


def _text(value: Any) -> str:
    return f'{value:.4g}' if isinstance(value, float) else str(value)
