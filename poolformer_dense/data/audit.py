"""Look for faults in data sets: annotation files, image files, label maps."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import UserError
from .coco_file import CocoFile
from .faults import Fault, fault_table, is_error, short_name
from .label_maps import LabelMaps, reduce_zero_label_fault
from .source import Source
from .voc_files import VocFiles


@dataclass
class Audit:
    """What was found in one data set.

    Attributes:
        source: The data set.
        path: The annotation file or, of label maps, their folder.
        contents: What it holds, e.g. '50 images, 470 annotations'.
        faults: What is wrong.
        fixed: The repaired file, if one was written.
        done: What --fix did: keys are (what, list, kind).
    """

    source: Source
    path: str
    contents: str
    faults: list[Fault]
    fixed: Path | None = None
    done: Counter[tuple[str, str, str]] = field(default_factory=Counter)


def audit(
    sources: Sequence[Source],
    quick: bool = False,
    fix: Path | None = None,
    progress: bool = False,
) -> tuple[list[Audit], list[str]]:
    """Look for faults in data sets.

    Args:
        sources: The data sets, from `config.datasets.named_sources`.
        quick: Open no image: annotation files, whether the images are there, and a few label maps.
        fix: A folder for repaired annotation files.
        progress: Show a bar on standard error while files are read.

    Returns:
        What was found, and the places whose kind of data set can't be looked into.

    Raises:
        UserError: A repaired file would replace another.
    """
    formats: dict[Source, type[CocoFile] | type[VocFiles] | type[LabelMaps]] = {}
    unread = []
    for source in sources:
        for kind in (CocoFile, VocFiles, LabelMaps):
            if source.local and kind.reads(source.dataset):
                formats[source] = kind
        if source not in formats:
            unread += [f'{place} ({type(source.dataset).__name__})' for place in source.places]
    targets = _targets(fix, list(formats)) if fix else {}
    results = []
    groups: dict[tuple[int, bool], list[tuple[LabelMaps, Audit]]] = defaultdict(list)
    for source, kind in formats.items():
        data = kind(source)
        faults = data.faults(quick, f'reading {short_name(source.places)}' if progress else '')
        result = Audit(source, data.path, data.contents, source.faults + faults)
        results.append(result)
        if source in targets and any(found.entry for found in result.faults):
            result.fixed = targets[source]
            result.done = data.fix(result.fixed, result.faults)
        if isinstance(data, LabelMaps):
            groups[data.num_labels, data.reduce].append((data, result))
    for group in groups.values():
        for maps, result in group:
            others = [other for other, _ in group if other is not maps]
            if found := reduce_zero_label_fault(maps, others):
                result.faults.append(found)
    return results, unread


def format_audits(results: Sequence[Audit], unread: Sequence[str], examples: int = 3) -> str:
    """Return the data looked into, the table of faults, and what was done about them."""
    named = [(short_name(result.source.places), result) for result in results]
    lines = [f'{name}: {result.path} ({result.contents})' for name, result in named]
    lines += [f'not verified, the type is not known here: {place}' for place in unread]
    faulty = [(name, result.faults) for name, result in named if result.faults]
    lines += ['', fault_table(faulty, examples), ''] if faulty else []
    count = sum(len(faults) for _, faults in faulty)
    errors = sum(is_error(found) for _, faults in faulty for found in faults)
    if count:
        lines.append(f'errors: {errors}, warnings: {count - errors}')
    elif not unread:
        lines.append('no faults')
    for name, result in named:
        if result.fixed:
            lines += ['', f'{result.fixed}, the repaired {name}:']
            lines += [f'  {which}: {n} {what} ({k})' for (what, which, k), n in result.done.items()]
            places = result.source.places + result.source.evaluators
            options = ' '.join(f'{place}.ann_file={result.fixed}' for place in places)
            lines.append(f'  use it with --cfg-options {options}')
    return '\n'.join(lines)


def _targets(folder: Path, sources: Sequence[Source]) -> dict[Source, Path]:
    """Where the repaired file of each source goes; two sources never share one.

    Raises:
        UserError: A file is already there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f'--fix {folder}: this is a file; name a folder for the repaired files')
    files = [Path(os.path.abspath(s.dataset.ann_file)) for s in sources if s.dataset.ann_file]
    common = os.path.commonpath([file.parent for file in files]) if files else ''
    targets: dict[Source, Path] = {}
    for source in sources:
        if source.dataset.ann_file:
            name = os.path.relpath(source.dataset.ann_file, common)
        else:
            name = f'{short_name(source.places[:1])}.txt'
        target = Path(os.path.abspath(folder), name)
        if target.exists() or target in targets.values():
            raise UserError(f'--fix {folder}: {target} is there already; name an empty folder')
        targets[source] = target
    return targets
