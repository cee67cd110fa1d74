"""What is known of a prepared tree: number and bytes of its files, for a later look to be cheap."""

from __future__ import annotations

import json
from pathlib import Path

from ..errors import UserError
from .archives import Archive, Dataset
from .inside import open_folder
from .tree import Measure, lacking, measure

RECORD = '.prepared.json'  # beside what the archives unpack to


def write_record(archive: Archive, root: Path) -> None:
    """Write down what an archive left, when the whole data set is checked."""
    _write(archive, root, {archive.name: measure(archive, root / archive.folder)})


def forget(archive: Archive, root: Path) -> None:
    """Take an archive out of the record before its files are brought."""
    if is_recorded(archive, root):
        _write(archive, root, {})


def is_recorded(archive: Archive, root: Path) -> bool:
    """Whether all the files of an archive were there once, and checked."""
    return archive.name in _read(archive, root)


def is_unchanged(dataset: Dataset, root: Path) -> bool:
    """Whether all was checked, and number and bytes of the files are what they were then."""
    return all(
        _read(archive, root).get(archive.name) == measure(archive, root / archive.folder)
        for archive in dataset.archives
    )


def differences(archive: Archive, root: Path) -> list[str]:
    """Say which counts are not as published, and which bytes not as recorded."""
    top = root / archive.folder
    found = measure(archive, top)
    problems = lacking(archive, top, found)
    recorded = _read(archive, root).get(archive.name, found)
    if not problems and recorded != found:
        changed = ', '.join(str(top / key) for key in found if found[key] != recorded.get(key))
        problems.append(
            f'{changed}: other sizes than when it was prepared (if that is meant, delete '
            f'{root / archive.into / RECORD})'
        )
    return problems


def _read(archive: Archive, root: Path) -> dict[str, Measure]:
    path = root / archive.into / RECORD
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f'{path} is damaged ({error}): delete it') from error


def _write(archive: Archive, root: Path, entry: dict[str, Measure]) -> None:
    others = {name: found for name, found in _read(archive, root).items() if name != archive.name}
    with open_folder(root, archive.into) as folder, folder.replace(RECORD) as file:
        file.write(json.dumps(others | entry, indent=2).encode())
