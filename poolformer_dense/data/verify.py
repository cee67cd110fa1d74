"""Verify the data that a config names: annotation files, image files, label maps."""

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

from mmengine.config import Config

from ..errors import UserError
from .classes import check_categories, check_num_classes
from .coco_faults import coco_faults
from .coco_fix import clean
from .faults import Fault, fault, format_table, is_error, short_name
from .images import inspect_image, missing_files, read_all
from .label_maps import LabelMaps, reduce_zero_label_fault, write_list
from .sources import SPLITS, Source, evaluators_of, named_sources


@dataclass
class Verified:
    """What was found in one set of data.

    Attributes:
        places: Where the config names it.
        path: The annotation file or, of label maps, their folder.
        contents: What it holds, e.g. '50 images, 470 annotations'.
        faults: What is wrong.
        evaluators: Which evaluators of the config read the same file.
        fixed: The cleaned file, if one was written.
        done: What --fix did: keys are (what, list, kind).
    """

    places: list[str]
    path: str
    contents: str
    faults: list[Fault]
    evaluators: list[str] = field(default_factory=list)
    fixed: Path | None = None
    done: Counter = field(default_factory=Counter)


def verify(
    cfg: Config,
    splits: Sequence[str] = SPLITS,
    quick: bool = False,
    fix: Path | None = None,
    progress: bool = False,
) -> tuple[list[Verified], list[str]]:
    """Verify the data of a config.

    Args:
        cfg: The config, overrides merged; its toolbox must be importable.
        splits: Which of train, val and test to look at.
        quick: Open no image: annotation files, whether the images are there, and a few label maps.
        fix: A folder for cleaned annotation files.
        progress: Show a bar on standard error while files are read.

    Returns:
        What was found, and the places whose kind of data set can't be verified.

    Raises:
        UserError: Data is missing altogether, or a cleaned file would replace another.
    """
    sources, unread = named_sources(cfg, splits)
    targets = _targets(fix, sources) if fix else [None] * len(sources)
    results = []
    groups: dict[tuple, list[tuple[LabelMaps, Verified]]] = defaultdict(list)
    for source, target in zip(sources, targets, strict=True):
        if hasattr(source.dataset, 'reduce_zero_label'):
            maps, result = _verify_label_maps(cfg, source, quick, target, progress)
            groups[maps.num_labels, maps.reduce].append((maps, result))
            results.append(result)
        elif _is_coco(source):
            results.append(_verify_coco(cfg, source, quick, target, progress))
        else:
            unread += [f'{place} ({type(source.dataset).__name__})' for place in source.places]
    for group in groups.values():
        for maps, result in group:
            others = [other for other, _ in group if other is not maps]
            if found := reduce_zero_label_fault(maps, others):
                result.faults.append(found)
    return results, unread


def refuse_faulty(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Raise for errors that a quick look finds; return a line for each set with warnings.

    Raises:
        UserError: The data has errors; one line names the first of them.
    """
    remarks = []
    tool = f'tools/verify_data.py {cfg.filename}'
    for result in verify(cfg, splits, quick=True)[0]:
        errors = [found for found in result.faults if is_error(found)]
        if errors:
            first = list({found.kind: f'{found.kind}: {found}' for found in errors[::-1]}.values())
            raise UserError(
                f'{result.path} ({short_name(result.places)}) has errors: {len(errors)}, first '
                f'{"; ".join(first[::-1][:3])}. For the whole table and a cleaned file, run {tool}'
            )
        if result.faults:
            kinds = Counter(found.kind for found in result.faults)
            counts = ', '.join(f'{count} x {kind}' for kind, count in kinds.items())
            remarks.append(f'{result.path}: warnings: {counts}. For the table: {tool}')
    return remarks


def format_report(results: Sequence[Verified], unread: Sequence[str], examples: int = 3) -> str:
    """Return the data verified, the table of faults, and what was done about them."""
    lines = [f'{short_name(r.places)}: {r.path} ({r.contents})' for r in results]
    lines += [f'not verified, the type is not known here: {place}' for place in unread]
    faulty = [(short_name(r.places), r.faults) for r in results if r.faults]
    lines += ['', format_table(faulty, examples), ''] if faulty else []
    count = sum(len(r.faults) for r in results)
    errors = sum(is_error(found) for r in results for found in r.faults)
    lines.append(f'errors: {errors}, warnings: {count - errors}' if count else 'no faults')
    for result in results:
        if result.fixed:
            lines += ['', f'{result.fixed}, the cleaned {short_name(result.places)}:']
            lines += [
                f'  {name}: {n} {what} ({kind})' for (what, name, kind), n in result.done.items()
            ]
            places = result.places + result.evaluators
            options = ' '.join(f'{place}.ann_file={result.fixed}' for place in places)
            lines.append(f'  use it with --cfg-options {options}')
    return '\n'.join(lines)


def _is_coco(source: Source) -> bool:
    from mmdet.datasets import CocoDataset

    own = type(source.dataset)
    # A subclass that reads its file in another way (LVIS, panoptic) has another format.
    return (
        isinstance(source.dataset, CocoDataset)
        and own.load_data_list is CocoDataset.load_data_list
        and own.COCOAPI is CocoDataset.COCOAPI
    )


def _verify_coco(
    cfg: Config, source: Source, quick: bool, target: Path | None, progress: bool
) -> Verified:
    path = Path(source.dataset.ann_file)
    with _no_collector():
        try:
            content = json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            found = fault('annotation file', str(path), f'is not JSON: {error}')
            return Verified(source.places, str(path), 'not read', [found])
        faults = coco_faults(content, source.masks, source.evaluated)
    if any(found.kind == 'annotation file' for found in faults):
        return Verified(source.places, str(path), 'not read', faults)
    counts = f'{len(content["images"])} images, {len(content.get("annotations", []))} annotations'
    categories = [c.get('name') for c in content['categories'] if isinstance(c, dict)]
    faults += _class_faults(cfg, source, path, categories)
    faults += _image_faults(
        source, content['images'], quick, f'reading {short_name(source.places)}' if progress else ''
    )
    result = Verified(source.places, str(path), counts, faults, _evaluators_with(cfg, path))
    if target and any(found.entry for found in faults):
        result.done = clean(content, faults, source.masks, source.evaluated)
        if not content['images']:
            raise UserError(f'{path}: no image is left without a fault, so no file is written')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
        result.fixed = target
    return result


def _evaluators_with(cfg: Config, path: Path) -> list[str]:
    return [
        place
        for split in SPLITS
        for place, node in evaluators_of(cfg.get(f'{split}_evaluator'), f'{split}_evaluator')
        if node.get('ann_file') and Path(node['ann_file']).absolute() == path.absolute()
    ]


def _class_faults(
    cfg: Config, source: Source, path: Path | None = None, categories: Sequence[str] = ()
) -> list[Fault]:
    """The classes of the config against the file's and the heads', as `train.py` sees them."""
    classes = list(source.dataset.metainfo.get('classes') or ())
    place = source.places[0]
    checks = [partial(check_num_classes, cfg.model, len(classes), place)]
    if path:
        checks.append(partial(check_categories, path, categories, classes, f'{place}.ann_file'))
    faults = []
    for check in checks if classes else []:
        try:
            check()
        except UserError as error:
            where, _, detail = str(error).partition(': ')
            faults.append(fault('classes', *((where, detail) if detail else (place, where))))
    return faults


def _image_faults(source: Source, images: list, quick: bool, description: str) -> list[Fault]:
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
    results = read_all(read, [path for _, _, path in named], description)
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


def _verify_label_maps(
    cfg: Config, source: Source, quick: bool, target: Path | None, progress: bool
) -> tuple[LabelMaps, Verified]:
    maps = LabelMaps(source, cfg.model)
    folder = source.dataset.data_prefix.get('seg_map_path') or ''
    faults = _class_faults(cfg, source)
    faults += maps.faults(quick, f'reading {short_name(source.places)}' if progress else '')
    result = Verified(source.places, folder, f'{len(maps.pairs)} images', faults)
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
