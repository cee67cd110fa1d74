"""What lies in a folder of a data set, against what must be there."""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rich.filesize import decimal

from ..errors import UserError
from .archives import Archive, Dataset, Files
from .inside import OpenFolder
from .progress import byte_bar

# Bytes and number of the files of each pattern, as the record of a prepared tree has them.
Measure = dict[str, list[int]]

_PNG = b'\x89PNG\r\n\x1a\n'
# COCO's train2017/000000320612.jpg is a PNG.
_HEADS = {'.jpg': (b'\xff\xd8\xff', _PNG), '.png': (_PNG,)}
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def measure(archive: Archive, top: Path) -> Measure:
    """Return number and bytes of the files that an archive must leave in its folder ``top``."""
    result = {}
    for files in archive.files:
        sizes = [size for _, size in _scan(files, top)]
        result[f'{files.folder}/{files.pattern}'.lstrip('/')] = [len(sizes), sum(sizes)]
    return result


def lacking(archive: Archive, top: Path, found: Measure) -> list[str]:
    """Say which counts are not as published, fewer files or more."""
    problems = []
    for files, (key, (count, _)) in zip(archive.files, found.items(), strict=True):
        if count != files.count:
            problems.append(f'{top / key}: {count:,} of {files.count:,} files')
    return problems


def is_short(archive: Archive, found: Measure) -> bool:
    """Whether files are missing."""
    counts = zip(archive.files, found.values(), strict=True)
    return any(count < files.count for files, (count, _) in counts)


def describe(top: Path, found: Measure) -> Iterator[str]:
    """Yield a line for each pattern."""
    for key, (count, size) in found.items():
        yield f'{top / key}: {count:,} files, {decimal(size)}'


def copy(files: Files, top: Path, folder: OpenFolder) -> None:
    """Copy files from below ``top``, each whole or not at all; those of the same size stay."""
    entries = list(_scan(files, top))
    total = sum(size for _, size in entries)
    missing = [(entry, size) for entry, size in entries if folder.size(entry.name) != size]
    need = sum(size for _, size in missing)
    if need > folder.free():
        raise UserError(
            f'copying {top} takes {decimal(need)}, and {folder.path} has '
            f'{decimal(folder.free())} free: make room, or leave --copy out to link'
        )
    with byte_bar(f'{folder.path.name}: copying', total) as update:
        update(completed=total - need)
        for entry, size in missing:
            with open(entry.path, 'rb') as source, folder.replace(entry.name) as target:
                shutil.copyfileobj(source, target)
            update(advance=size)


def check_contents(dataset: Dataset, root: Path) -> list[str]:
    """Say what is wrong with the files themselves, as far as their heads and names tell.

    Each file is opened and its first bytes are read; pixels are not decoded. Names are compared
    between the places that must agree (`Dataset.pairs`).
    """
    problems = []
    for archive in dataset.archives:
        top = root / archive.folder
        for files in archive.files:
            wrong = list(_damaged(files, top))
            if wrong:
                problems.append(
                    f'{top / files.folder}: {_examples(wrong)} of {files.pattern} '
                    f'{"is" if len(wrong) == 1 else "are"} empty or damaged'
                )
    for one, other in dataset.pairs:
        first, second = _stems(root / one), _stems(root / other)
        for names, at, place in ((first - second, one, other), (second - first, other, one)):
            if names:
                problems.append(f'{root / at} has {_examples(sorted(names))} and {place} has not')
    return problems


def _scan(files: Files, top: Path) -> Iterator[tuple[os.DirEntry, int]]:
    folder = top / files.folder
    if not folder.is_dir():
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            # macOS leaves ._NAME beside NAME on foreign disks.
            if entry.name.startswith('.') or not fnmatchcase(entry.name, files.pattern):
                continue
            try:
                found = entry.stat()
            except FileNotFoundError:  # a link to nothing
                continue
            if stat.S_ISREG(found.st_mode):
                yield entry, found.st_size


def _damaged(files: Files, top: Path) -> Iterator[str]:
    with byte_bar(f'{top.name}/{files.folder}: checking'.replace('/:', ':')) as update:
        entries = sorted(_scan(files, top), key=lambda item: item[0].name)
        update(total=sum(size for _, size in entries))
        for entry, size in entries:
            with open(entry.path, 'rb') as file:
                suffix = Path(entry.name).suffix
                if suffix == '.json':
                    file.seek(max(0, size - 64))
                    good = file.read().rstrip().endswith(b'}')
                else:
                    good = file.read(8).startswith(_HEADS[suffix])
            if not good:
                yield entry.name
            update(advance=size)


def _stems(place: Path) -> set[str]:
    if place.suffix == '.json':
        return {Path(name).stem for name in _listed_images(place)}
    if not place.is_dir():
        return set()
    names = map(Path, os.listdir(place))
    return {n.stem for n in names if n.suffix in _HEADS and not n.name.startswith('.')}


def _listed_images(path: Path) -> Iterator[str]:
    """Yield the images of a COCO annotation file.

    They are searched for, because parsing the 450 MB of COCO's training set takes gigabytes of
    memory. Nothing but an image has a ``file_name`` there.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with (
        path.open('rb') as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
    ):
        for match in _FILE_NAME.finditer(content):
            yield json.loads(match[1])


def _examples(names: list[str], most: int = 3) -> str:
    return ', '.join(names[:most]) + (f', ... ({len(names):,} in all)' if len(names) > most else '')
