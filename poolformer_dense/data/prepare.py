"""From nothing, from archives or from an unpacked tree to the layout that the configs expect."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.filesize import decimal

from ..errors import UserError
from ..terminal import say
from .archives import Archive, Dataset
from .download import discard_part, download, md5_of
from .inside import open_folder
from .tree import (
    changed_counts,
    check_contents,
    copy_files,
    count_files,
    is_short,
    record_counts,
    recorded_counts,
    wrong_counts,
)
from .unpack import differing_files, unpack
from .voc_annotations import missing_annotations, write_annotations

DOWNLOADS = 'downloads'  # beside the unpacked folders; only this tool writes there


@dataclass(frozen=True)
class _Source:
    """Where an archive's files come from: its zip file, an unpacked tree, or the network."""

    kind: Literal['zip', 'tree', 'network']
    place: Path | str


def prepare(
    dataset: Dataset,
    root: Path,
    source: Path | None = None,
    *,
    mirror: str | None = None,
    copy: bool = False,
    keep_archives: bool = False,
    backoff: float = 1.0,
) -> None:
    """Bring a data set to its layout below ``root``, or resume where an earlier call stopped.

    Args:
        dataset: A row of `archives.DATASETS`.
        root: The only place that is written to; made if need be.
        source: A folder with the archives or with the unpacked tree, or one archive; only read.
            What it does not have is downloaded.
        mirror: The URL of a folder with the archives, instead of their publisher's.
        copy: Copy an unpacked tree instead of linking to it.
        keep_archives: Keep what was downloaded after it is unpacked.
        backoff: Seconds before a cut download is tried again; see `download.download`.

    Raises:
        UserError: Something is missing, damaged, refused or in the way, or the disk is full.
    """
    with _plain_errors(root):
        if source is not None:
            _check_source(dataset, source)
        pending = {a: s for a in dataset.archives if (s := _pending(a, root, source, mirror))}
        tops = {archive: root / archive.folder for archive in dataset.archives}
        if (
            not pending
            and all(
                recorded_counts(archive, root) == count_files(archive, top)
                for archive, top in tops.items()
            )
            and not missing_annotations(dataset, root)
        ):
            say(f'{dataset.name} is complete in {root}: nothing to do')
            return
        _check_room(pending, root, keep_archives)
        if dataset.terms and any(origin.kind == 'network' for origin in pending.values()):
            say(f'{dataset.name}: from {dataset.terms}')
        for archive, origin in pending.items():
            with open_folder(root, archive.into) as folder:
                folder.lock()
                record_counts(archive, root, None)
                _fetch(archive, origin, root, copy, backoff)
                if not keep_archives:
                    _remove_download(archive, root)
        problems = check_contents(dataset, root)
        problems += [p for archive in tops for p in changed_counts(archive, root)]
        if problems:
            raise UserError(
                f'{dataset.name} in {root} is not right: {"; ".join(problems)}. Delete what is '
                'wrong, or the link to it, and run the same command again'
            )
        write_annotations(dataset, root)
        # A tree that can't be written to needs no record: it is checked again the next time.
        with suppress(OSError, UserError):
            for archive, top in tops.items():
                record_counts(archive, root, count_files(archive, top))
        _print_tree(dataset, root)
        say(f'{dataset.name} is complete in {root}')


def check_prepared(dataset: Dataset, root: Path, source: Path | None = None) -> None:
    """Check what lies below ``root`` without writing anything.

    Counts; the first bytes of every file; names of images against annotations; number and bytes
    against the record of the preparation; checksum of every file against the archives that are
    still there or in ``source``.

    Raises:
        UserError: Something is missing or damaged; the message lists it.
    """
    with _plain_errors(root):
        problems = check_contents(dataset, root)
        for archive in dataset.archives:
            problems += changed_counts(archive, root)
            path = _find_zip(archive, root, source)
            if path is None:
                continue
            if archive.md5 and (found := _md5(path)) != archive.md5:
                problems.append(f'{path} has md5 {found}, not {archive.md5}')
            elif wrong := differing_files(path, archive.top, root / archive.into, archive.parent):
                problems.append(
                    f'{root / archive.into} has {len(wrong):,} files less or other than {path}, '
                    f'e.g. {wrong[0]}'
                )
        _print_tree(dataset, root)
        problems += [f'{path} is missing' for path in missing_annotations(dataset, root)]
        if problems:
            raise UserError(
                f'{dataset.name} in {root} is not right: {"; ".join(problems)}. Delete what is '
                'wrong; without --verify-only this command brings what is missing'
            )
        say(f'{dataset.name} is complete in {root}')


def _pending(
    archive: Archive, root: Path, source: Path | None, mirror: str | None
) -> _Source | None:
    """Where to take an archive from; None if all its files are there already."""
    top = root / archive.folder
    # A download that was not unpacked to the end may lack files that nothing counts.
    leftover = (root / archive.into / DOWNLOADS / archive.name).is_file()
    whole = not leftover or recorded_counts(archive, root) is not None
    if whole and not is_short(archive, count_files(archive, top)):
        return None
    short = []
    for place in _trees(archive, source):
        if not (top.exists() and place.samefile(top)):
            counts = count_files(archive, place)
            if not is_short(archive, counts):
                return _Source('tree', place)
            short += wrong_counts(archive, place, counts)
    if path := _find_zip(archive, root, source):
        return _Source('zip', path)
    if short:
        raise UserError(
            f'--from {source} is not complete: {"; ".join(short)}. Complete it, put '
            f'{archive.name} beside it, or leave --from out to download'
        )
    return _Source('network', f'{mirror.rstrip("/")}/{archive.name}' if mirror else archive.url)


def _check_source(dataset: Dataset, source: Path) -> None:
    if not source.exists():
        raise UserError(f'--from {source} does not exist')
    if not any(_zips(a, source) or _trees(a, source) for a in dataset.archives):
        raise UserError(
            f'--from {source} has nothing of {dataset.name}: neither archives '
            f'({_listed(dataset.archives)}) nor unpacked folders '
            f'({", ".join(f"{a.top}/" for a in dataset.archives)})'
        )


def _trees(archive: Archive, source: Path | None) -> list[Path]:
    """The folders in or at ``--from`` that an archive may have been unpacked to."""
    if source is None:
        return []
    itself = [source] if source.resolve().name == archive.top else []
    return [p for p in (source / archive.top, source / archive.folder, *itself) if p.is_dir()]


def _zips(archive: Archive, folder: Path) -> list[Path]:
    """The archive in a folder, or the archive that the path itself is."""
    places = (folder, folder / archive.name, folder / archive.into / archive.name)
    return [path for path in places if path.name == archive.name and path.is_file()]


def _find_zip(archive: Archive, root: Path, source: Path | None) -> Path | None:
    given = _zips(archive, source) if source else []
    own = _zips(archive, root / archive.into / DOWNLOADS) + _zips(archive, root)
    return next(iter(given + own), None)


def _fetch(archive: Archive, origin: _Source, root: Path, copy: bool, backoff: float) -> None:
    """Bring the files of one archive below ``root``."""
    downloads = f'{archive.into}/{DOWNLOADS}'
    own = root / downloads / archive.name
    if origin.kind == 'tree':
        (_copy if copy else _link)(archive, Path(origin.place), root)
        return
    if origin.kind == 'network':
        say(f'{archive.name}: downloading {decimal(archive.size)} from {origin.place}')
        with open_folder(root, downloads) as folder:
            download(str(origin.place), folder, archive.name, archive.md5, backoff)
        path = own
    else:
        path = Path(origin.place)
        # A download of this tool has this name only if its checksum was right.
        if archive.md5 and path != own and (found := _md5(path)) != archive.md5:
            raise UserError(
                f'{path} has md5 {found}, not {archive.md5} as published: it is damaged or another '
                'file. Download it again; if you packed it yourself, give --from the folder of '
                'its contents'
            )
    say(f'{archive.name}: unpacking {path} to {root / archive.folder}')
    unpack(path, archive.top, root, archive.into, archive.parent)


def _remove_download(archive: Archive, root: Path) -> None:
    downloads = root / archive.into / DOWNLOADS
    if downloads.is_dir():
        with open_folder(root, f'{archive.into}/{DOWNLOADS}') as folder:
            # In this order: the archive tells a later run that there is something to remove.
            discard_part(folder, archive.name)
            folder.remove(archive.name)
        with suppress(OSError):  # others are in it
            downloads.rmdir()


def _md5(path: Path) -> str:
    with path.open('rb') as file:
        return md5_of(file, f'{path.name}: checksum')


def _link(archive: Archive, place: Path, root: Path) -> None:
    top = root / archive.folder
    if top.is_symlink() or top.exists():
        raise UserError(
            f'{top} is there already and is not complete: delete it to link to {place}, or '
            'complete it from there with --copy'
        )
    say(f'{top}: a link to {place.resolve()}')
    with open_folder(root, archive.into) as folder:
        folder.link(archive.top, place.resolve())


def _copy(archive: Archive, place: Path, root: Path) -> None:
    say(f'{root / archive.folder}: copying {place}')
    for files in archive.files:
        with open_folder(root, f'{archive.folder}/{files.folder}') as folder:
            copy_files(files, place, folder)


def _check_room(pending: dict[Archive, _Source], root: Path, keep: bool) -> None:
    """Refuse to begin what can't end; what is there already counts."""
    unpacked, downloaded = 0, []
    for archive, origin in pending.items():
        if origin.kind != 'tree':
            there = sum(size for _, size in count_files(archive, root / archive.folder).values())
            unpacked += max(0, archive.size - there)
        if origin.kind == 'network':
            part = root / archive.into / DOWNLOADS / f'{archive.name}.part'
            downloaded.append(archive.size - (part.stat().st_size if part.is_file() else 0))
    need = unpacked + (sum(downloaded) if keep else max(downloaded, default=0))
    with open_folder(root) as folder:
        folder.check_room(need, f'preparing {_listed(pending)}')


def _print_tree(dataset: Dataset, root: Path) -> None:
    for archive in dataset.archives:
        top = root / archive.folder
        for key, (count, size) in count_files(archive, top).items():
            say(f'{top / key}: {count:,} files, {decimal(size)}')


def _listed(archives: Iterable[Archive]) -> str:
    return ', '.join(archive.name for archive in archives)


@contextmanager
def _plain_errors(root: Path) -> Iterator[None]:
    """Turn a full disk or a missing permission into one line."""
    try:
        yield
    except OSError as error:
        place = error.filename if isinstance(error.filename, str) else root
        raise UserError(f'{place}: {error.strerror or error}') from error
