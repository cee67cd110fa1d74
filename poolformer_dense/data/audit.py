"""Look for faults in data sets: annotation files, image files, label maps."""

from __future__ import annotations

import gc
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ..errors import UserError
from .categories import category_problem
from .coco_faults import coco_faults
from .coco_fix import clean
from .faults import Fault, fault, fault_table, is_error, short_name
from .images import inspect_image, missing_files, read_all
from .label_maps import LabelMaps, reduce_zero_label_fault, write_list
from .source import Source


@dataclass
class Audit:
    """What was found in one data set.

    Attributes:
        source: The data set.
        path: The annotation file or, of label maps, their folder.
        contents: What it holds, e.g. '50 images, 470 annotations'.
        faults: What is wrong.
        fixed: The cleaned file, if one was written.
        done: What --fix did: keys are (what, list, kind).
    """

    source: Source
    path: str
    contents: str
    faults: list[Fault]
    fixed: Path | None = None
    done: Counter = field(default_factory=Counter)


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
        fix: A folder for cleaned annotation files.
        progress: Show a bar on standard error while files are read.

    Returns:
        What was found, and the places whose kind of data set can't be looked into.

    Raises:
        UserError: A cleaned file would replace another.
    """
    known = [s for s in sources if s.local and (_has_label_maps(s) or _is_coco(s))]
    unread = [
        f'{place} ({type(source.dataset).__name__})'
        for source in sources
        if source not in known
        for place in source.places
    ]
    targets = _targets(fix, known) if fix else [None] * len(known)
    results = []
    groups: dict[tuple, list[tuple[LabelMaps, Audit]]] = defaultdict(list)
    for source, target in zip(known, targets, strict=True):
        title = f'reading {short_name(source.places)}' if progress else ''
        if _has_label_maps(source):
            maps, result = _audit_label_maps(source, quick, target, title)
            groups[maps.num_labels, maps.reduce].append((maps, result))
        else:
            result = _audit_coco(source, quick, target, title)
        results.append(result)
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
    lines.append(f'errors: {errors}, warnings: {count - errors}' if count else 'no faults')
    for name, result in named:
        if result.fixed:
            lines += ['', f'{result.fixed}, the cleaned {name}:']
            lines += [f'  {which}: {n} {what} ({k})' for (what, which, k), n in result.done.items()]
            places = result.source.places + result.source.evaluators
            options = ' '.join(f'{place}.ann_file={result.fixed}' for place in places)
            lines.append(f'  use it with --cfg-options {options}')
    return '\n'.join(lines)


def _has_label_maps(source: Source) -> bool:
    return hasattr(source.dataset, 'reduce_zero_label')


def _is_coco(source: Source) -> bool:
    from mmdet.datasets import CocoDataset

    own = type(source.dataset)
    # A subclass that reads its file in another way (LVIS, panoptic) has another format.
    return (
        isinstance(source.dataset, CocoDataset)
        and own.load_data_list is CocoDataset.load_data_list
        and own.COCOAPI is CocoDataset.COCOAPI
    )


def _audit_coco(source: Source, quick: bool, target: Path | None, title: str) -> Audit:
    path = Path(source.dataset.ann_file)
    with _no_collector():
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            found = fault('annotation file', str(path), f'is not JSON: {error}')
            return Audit(source, str(path), 'not read', [found])
        faults = coco_faults(content, source.masks, source.evaluated)
    if any(found.kind == 'annotation file' for found in faults):
        return Audit(source, str(path), 'not read', faults)
    counts = f'{len(content["images"])} images, {len(content.get("annotations", []))} annotations'
    faults += source.faults
    names = [str(c.get('name')) for c in content['categories'] if isinstance(c, dict)]
    if source.classes and (problem := category_problem(path, names, source.classes)):
        faults.append(fault('classes', f'{source.places[0]}.ann_file', problem))
    faults += _image_faults(source, content['images'], quick, title)
    result = Audit(source, str(path), counts, faults)
    if target and any(found.entry for found in faults):
        result.done = clean(content, faults, source.masks, source.evaluated)
        if not content['images']:
            raise UserError(f'{path}: no image is left without a fault, so no file is written')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
        result.fixed = target
    return result


def _image_faults(source: Source, images: list, quick: bool, title: str) -> list[Fault]:
    """Whether the images are there and, unless `quick`, whole and of the size stated."""
    folder = source.dataset.data_prefix.get('img') or ''
    named = [
        (i, entry, os.path.join(folder, entry['file_name']))
        for i, entry in enumerate(images)
        if isinstance(entry, dict) and isinstance(entry.get('file_name'), str)
    ]
    missing = missing_files([path for _, _, path in named])
    faults = [
        fault('missing image', path, f'image {entry.get("id")} has no file', ('images', i))
        for (i, entry, path), gone in zip(named, missing, strict=True)
        if gone
    ]
    if quick:
        return faults
    named = [item for item, gone in zip(named, missing, strict=True) if not gone]
    read = partial(inspect_image, turn=source.turns_images())
    results = read_all(read, [path for _, _, path in named], title)
    for (i, entry, path), (size, note) in zip(named, results, strict=True):
        stated = entry.get('width'), entry.get('height')
        if size is None:
            detail = f'image {entry.get("id")}: {note}'
            faults.append(fault('unreadable image', path, detail, ('images', i)))
        elif size != stated:
            detail = (
                f'image {entry.get("id")} has {size[0]}x{size[1]} pixels{note}, the annotation '
                f'file says {stated[0]}x{stated[1]}'
            )
            faults.append(fault('wrong image size', path, detail, ('images', i)))
    return faults


def _audit_label_maps(
    source: Source, quick: bool, target: Path | None, title: str
) -> tuple[LabelMaps, Audit]:
    maps = LabelMaps(source)
    folder = source.dataset.data_prefix.get('seg_map_path') or ''
    faults = source.faults + maps.faults(quick, title)
    result = Audit(source, folder, f'{len(maps.pairs)} images', faults)
    pairs = Counter({found.entry: found.kind for found in faults if found.entry}.values())
    if target and pairs:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_list(target, maps, faults)
        result.fixed = target
        result.done = Counter({('dropped', 'pairs', kind): n for kind, n in pairs.items()})
    return maps, result


def _targets(folder: Path, sources: Sequence[Source]) -> list[Path]:
    """Where the cleaned file of each source goes; two sources never share one.

    Raises:
        UserError: A file is already there.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f'--fix {folder}: this is a file; name a folder for the cleaned files')
    files = [Path(os.path.abspath(s.dataset.ann_file)) for s in sources if s.dataset.ann_file]
    common = os.path.commonpath([file.parent for file in files]) if files else ''
    targets = []
    for source in sources:
        if source.dataset.ann_file:
            name = os.path.relpath(source.dataset.ann_file, common)
        else:
            name = f'{short_name(source.places[:1])}.txt'
        target = Path(os.path.abspath(folder), name)
        if target.exists() or target in targets:
            raise UserError(f'--fix {folder}: {target} is there already; name an empty folder')
        targets.append(target)
    return targets


@contextmanager
def _no_collector() -> Iterator[None]:
    """Halve the time that parsing takes: the collector would visit every list again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
