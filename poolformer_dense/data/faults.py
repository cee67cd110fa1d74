"""The kinds of faults in data, their severities, and the table of those found."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..terminal import printable

ERROR, WARNING = 'error', 'warning'
# An error where masks are trained or evaluated; a box-only run never reads them.
MASK_ERROR = 'error with masks'

# Error: the run stops, or learns or measures something wrong. Warning: the toolboxes skip the
# entry or clip it, or the data alone can't confirm the fault. docs/verify_data.md explains each.
SEVERITIES = {
    # of a COCO annotation file
    'annotation file': ERROR,
    'encoding': ERROR,
    'classes': ERROR,
    'no image left': ERROR,
    'nothing to learn': WARNING,
    'image entry': ERROR,
    'duplicate image id': ERROR,
    'category entry': ERROR,
    'duplicate category': ERROR,
    'annotation entry': ERROR,
    'annotation id': ERROR,
    'duplicate annotation id': ERROR,
    'annotation id 0': WARNING,
    'unknown image id': WARNING,
    'unknown category id': ERROR,
    'NaN or infinite': ERROR,
    'invalid box': ERROR,
    'box of no area': WARNING,
    'box outside image': WARNING,
    'invalid area': ERROR,
    'area not positive': WARNING,
    'iscrowd': ERROR,
    'no mask': MASK_ERROR,
    'broken polygon': MASK_ERROR,
    'polygon outside image': WARNING,
    'broken RLE': MASK_ERROR,
    # of Pascal VOC's files
    'missing annotation': ERROR,
    'image listed twice': WARNING,
    'empty box': ERROR,
    'misspelt class': ERROR,
    'object left out': WARNING,
    'class without object': WARNING,
    'no object': ERROR,
    # of image files
    'missing image': ERROR,
    'unreadable image': ERROR,
    'odd image': WARNING,
    'wrong image size': ERROR,
    # of label maps
    'missing label map': ERROR,
    'label map without image': WARNING,
    'unreadable label map': ERROR,
    'label map channels': ERROR,
    '16-bit label map': WARNING,
    'wrong label map size': ERROR,
    'label outside classes': ERROR,
    'unused class': WARNING,
    'reduce_zero_label': WARNING,
    'reduce_zero_label differs': ERROR,
}


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        kind: A key of `SEVERITIES`.
        where: The file, or the entry by its id.
        detail: What is wrong with it, with the value found.
        severity: error or warning.
        entry: For --fix: the list of the annotation file and the index in it, or ('pair', index).
    """

    kind: str
    where: str
    detail: str
    severity: str
    entry: tuple[str, int] | None = None

    def __str__(self) -> str:
        return printable(f'{self.where}: {self.detail}')


def fault(
    kind: str,
    where: str,
    detail: str,
    entry: tuple[str, int] | None = None,
    masks: bool = True,
) -> Fault:
    """Return a fault with the severity of its kind; `masks` says whether the run uses masks."""
    severity = SEVERITIES[kind]
    if severity == MASK_ERROR:
        severity = ERROR if masks else WARNING
    return Fault(kind, where, detail, severity, entry)


def is_error(fault: Fault) -> bool:
    """Whether a training must not start with it."""
    return fault.severity == ERROR


def fault_table(groups: Iterable[tuple[str, Sequence[Fault]]], examples: int = 3) -> str:
    """Return the table of kinds, errors first: data, kind, severity, count, first examples.

    Args:
        groups: For each set of data its name and its faults.
        examples: How many faults of a kind are listed, one a line; 0 lists all.
    """
    rows = [['data', 'kind', 'severity', 'count', 'first examples']]
    for name, faults in groups:
        kinds: dict[tuple[str, str], list[str]] = defaultdict(list)
        for found in faults:
            kinds[found.severity, found.kind].append(str(found))
        for (severity, kind), all_of_them in sorted(kinds.items(), key=lambda item: item[0][0]):
            shown = all_of_them[: examples or None]
            if rest := len(all_of_them) - len(shown):
                shown.append(f'... {rest} more')
            rows.append([name, kind, severity, str(len(all_of_them)), shown[0]])
            rows += [['', '', '', '', line] for line in shown[1:]]
    name_width, kind_width, severity_width, count_width = (
        max(len(row[column]) for row in rows) for column in range(4)
    )
    return '\n'.join(
        f'{name:{name_width}}  {kind:{kind_width}}  {severity:{severity_width}}  '
        f'{count:>{count_width}}  {example}'
        for name, kind, severity, count, example in rows
    )


def short_name(places: Sequence[str]) -> str:
    """Return e.g. 'val, test' for the loaders' places in the config."""
    return ', '.join(re.sub(r'_dataloader|_evaluator|\.dataset(?!s)', '', p) for p in places)


def first_names(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, and how many it has."""
    return ', '.join(names[:most]) + (f', ... ({len(names):,} in all)' if len(names) > most else '')
