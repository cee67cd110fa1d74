"""What lies in the folders of a data set, against what must be there and what was there before."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import shutil
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import UserError
from .archives import Archive, Dataset, Files
from .faults import first_names
from .inside import OpenFolder, open_folder
from .progress import byte_bar

# For each pattern of an archive's files, how many there are and their bytes.
Counts = dict[str, list[int]]

# The counts of a tree that was checked, beside what the archives unpack to: while they are the
# same, a later call has nothing to do.
RECORD = '.prepared.json'

_PNG = b'\x89PNG\r\n\x1a\n'
# COCO's train2017/000000320612.jpg is a PNG.
_HEADS = {'.jpg': (b'\xff\xd8\xff', _PNG), '.png': (_PNG,), '.xml': (b'<',), '.txt': (b'',)}
_FILE_NAME = re.compile(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')


def count_files(archive: Archive, top: Path) -> Counts:
    """Return number and bytes of the files that an archive must leave in its folder ``top``."""
    counts = {}
    for files in archive.files:
        sizes = [size for _, size in _scan(files, top)]
        counts[f'{files.folder}/{files.pattern}'.lstrip('/')] = [len(sizes), sum(sizes)]
    return counts


def wrong_counts(archive: Archive, top: Path, counts: Counts) -> list[str]:
    """Say which counts are not as published, fewer files or more."""
    return [
        f'{top / key}: {count:,} of {files.count:,} files'
        for files, (key, (count, _)) in zip(archive.files, counts.items(), strict=True)
        if count != files.count
    ]


def is_short(archive: Archive, counts: Counts) -> bool:
    """Whether files are missing."""
    pairs = zip(archive.files, counts.values(), strict=True)
    return any(count < files.count for files, (count, _) in pairs)


def recorded_counts(archive: Archive, root: Path) -> Counts | None:
    """Return the counts that an archive's files had when they were checked, if they ever were."""
    return _read_record(archive, root).get(archive.name)


def record_counts(archive: Archive, root: Path, counts: Counts | None) -> None:
    """Write down the counts of an archive's files; None takes it out of the record."""
    record = _read_record(archive, root)
    if counts is not None:
        record[archive.name] = counts
    elif record.pop(archive.name, None) is None:
        return
    with open_folder(root, archive.into) as folder, folder.replace(RECORD) as file:
        file.write(json.dumps(record, indent=2).encode())


def _read_record(archive: Archive, root: Path) -> dict[str, Counts]:
    path = root / archive.into / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): delete it') from error


def changed_counts(archive: Archive, root: Path) -> list[str]:
    """Say which counts are not as published or, of a whole tree, not as recorded."""
    top = root / archive.folder
    counts = count_files(archive, top)
    recorded = recorded_counts(archive, root) or counts
    if (problems := wrong_counts(archive, top, counts)) or counts == recorded:
        return problems
    changed = ', '.join(str(top / key) for key in counts if counts[key] != recorded.get(key))
    return [
        f'{changed}: other sizes than when it was prepared (if that is meant, delete '
        f'{root / archive.into / RECORD})'
    ]


def copy_files(files: Files, top: Path, folder: OpenFolder) -> None:
    """Copy files from below ``top``, each whole or not at all; those of the same size stay."""
    entries = list(_scan(files, top))
    missing = [(entry, size) for entry, size in entries if folder.size(entry.name) != size]
    need = sum(size for _, size in missing)
    folder.check_room(need, f'copying {top}', 'leave --copy out to link')
    with byte_bar(f'{folder.path.name}: copying', sum(size for _, size in entries)) as update:
        update(advance=sum(size for _, size in entries) - need)
        for entry, size in missing:
            with open(entry.path, 'rb') as source, folder.replace(entry.name) as target:
                shutil.copyfileobj(source, target)
            update(advance=size)


def check_contents(dataset: Dataset, root: Path) -> list[str]:
    """Say what is wrong with the files themselves, as far as their heads and names tell.

    Each file is opened and its first bytes are read, or all where a checksum is known; pixels are
    not decoded. Names are compared
    between the places that must agree (`Dataset.pairs`).
    """
    problems = []
    for archive in dataset.archives:
        top = root / archive.folder
        for files in archive.files:
            if wrong := list(_damaged(files, top)):
                are = 'is' if len(wrong) == 1 else 'are'
                problems.append(
                    f'{top / files.folder}: {first_names(wrong, 3)} of {files.pattern} {are} empty '
                    'or damaged'
                )
            elif files.sha256 and files.sha256 != checksum(files, top):
                problems.append(
                    f'{top / files.folder}: {files.pattern} are not those published (sha256 of '
                    'names and contents)'
                )
    for one, other in dataset.pairs:
        first, second = _stems(root / one), _stems(root / other)
        for names, at, place in ((first - second, one, other), (second - first, other, one)):
            if names:
                examples = first_names(sorted(names), 3)
                problems.append(f'{root / at} has {examples} and {place} has not')
    return problems


def checksum(files: Files, top: Path) -> str:
    """Return the sha256 of names and contents, in the names' order."""
    total = hashlib.sha256()
    for entry, _ in sorted(_scan(files, top), key=lambda item: item[0].name):
        content = hashlib.sha256(Path(entry.path).read_bytes()).digest()
        total.update(entry.name.encode() + b'\0' + content)
    return total.hexdigest()


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
    entries = sorted(_scan(files, top), key=lambda item: item[0].name)
    title = f'{Path(top.name, files.folder)}: checking'
    with byte_bar(title, sum(size for _, size in entries)) as update:
        for entry, size in entries:
            with open(entry.path, 'rb') as file:
                if entry.name.endswith('.json'):
                    file.seek(max(0, size - 64))
                    good = file.read().rstrip().endswith(b'}')
                else:
                    good = file.read(8).startswith(_HEADS[Path(entry.name).suffix])
            if not good:
                yield entry.name
            update(advance=size)


def _stems(place: Path) -> set[str]:
    """The names, without suffix, of the images in a folder or in a COCO annotation file."""
    if place.is_dir():
        names = map(Path, os.listdir(place))
        return {n.stem for n in names if n.suffix in _HEADS and not n.name.startswith('.')}
    if not place.is_file() or not place.stat().st_size:
        return set()
    # They are searched for, because parsing the 450 MB of COCO's training set takes gigabytes of
    # memory. Nothing but an image has a `file_name` there.
    with place.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return {Path(json.loads(match[1])).stem for match in _FILE_NAME.finditer(content)}
