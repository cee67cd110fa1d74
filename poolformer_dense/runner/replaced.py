"""Which checkpoints a resumed run may delete, whatever the one that it resumes from says.

mmengine keeps paths and numbers of files to delete in the message hub, which is saved in the
checkpoint, and the checkpoint may be a stranger's. What it says only chooses among the run's own
files: those beside it, with a name that the run gives, of a position that it has passed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LONGEST_NAME = 255


def number_in(name: str, template: str, prefix: str = '') -> int | None:
    """Return the number for which a template gives a file's name; None for any other.

    >>> number_in('epoch_12.pth', 'epoch_{}.pth')
    12
    >>> number_in('../epoch_12.pth', 'epoch_{}.pth')
    """
    return next((n for n in _numbers(name) if prefix + template.format(n) == name), None)


@dataclass
class Replaced:
    """What a run takes over from the checkpoint that it resumes from.

    Attributes:
        kept: The numbers of the regular checkpoints that count as kept, ascending.
        intermediate: The intermediate checkpoint that the next save replaces.
        outdated: Names of checkpoints that a killed run had replaced and not yet deleted.
        best: Names of the best checkpoints, by their keys in the message hub.
    """

    kept: list[int]
    intermediate: str | None
    outdated: list[str]
    best: dict[str, str]


@dataclass(frozen=True)
class Names:
    """The names that a run gives its checkpoints.

    Attributes:
        regular: The template of those that are saved by interval.
        between: The template of those that are saved in between.
        interval: Iterations from one regular checkpoint to the next; None if epochs are counted.
        keep: How many regular ones are kept; 0 for all.
        figures: What the best ones are best in, by their keys in the message hub; ``auto`` for
            any figure.
    """

    regular: str
    between: str
    interval: int | None
    keep: int
    figures: Mapping[str, str]

    def replaced(
        self, said: Mapping[str, Any], current: Path, epoch: int, iteration: int
    ) -> Replaced:
        """Choose among the files beside a checkpoint by what its message hub says of them.

        Args:
            said: The message hub's ``keep_ckpt_ids``, ``intermediate_ckpt``, ``outdated_ckpts``
                and best checkpoints.
            current: The checkpoint.
            epoch: Its complete epochs.
            iteration: Its iterations.
        """
        now = epoch if self.interval is None else iteration
        intermediate = _named(said.get('intermediate_ckpt'))
        own = None if intermediate == current.name else number_in(current.name, self.regular)
        ids = {s for s in _listed(said.get('keep_ckpt_ids')) if type(s) is int and 0 <= s <= now}
        ids |= set() if own is None else {own}
        claimed = set(map(_named, _listed(said.get('outdated_ckpts'))))
        numbers = {path.name: number_in(path.name, self.regular) for path in _files(current.parent)}
        regular = sorted((n, name) for name, n in numbers.items() if n is not None and n <= now)
        older = [name for _, name in regular[: -self.keep]] if self.keep else []
        outdated = {name for name in older if numbers[name] in ids or name in claimed}
        outdated |= {name for name in claimed if self._is_between(name, iteration)}
        best = {key: _named(said.get(key)) for key in self.figures}
        return Replaced(
            kept=sorted(ids)[-self.keep :] if self.keep else [],
            intermediate=intermediate if intermediate == current.name else None,
            outdated=sorted(outdated - {current.name}),
            best={k: name for k, name in best.items() if self._is_best(name, self.figures[k], now)},
        )

    def _is_between(self, name: str, iteration: int) -> bool:
        number = number_in(name, self.between)
        regular = self.interval and self.interval > 0 and (number or 0) % self.interval == 0
        return number is not None and number < iteration and not regular

    def _is_best(self, name: str, figure: str, now: int) -> bool:
        start = f'best_{figure}_'.replace('/', '_')
        if figure == 'auto':
            ends = (name.rfind(f'_{self.regular.format(n)}') for n in _numbers(name))
            start = name[: max(ends, default=-1) + 1]
        number = number_in(name, self.regular, start)
        return start.startswith('best_') and number is not None and number <= now


def _numbers(name: str) -> list[int]:
    return [int(digits) for digits in re.findall(r'[0-9]+', name)]


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _named(value: Any) -> str:
    """The last part of a path, as mmengine saves it; empty for what is none."""
    name = os.path.basename(value) if isinstance(value, str) else ''
    return name if len(name) <= _LONGEST_NAME else ''
