"""The COCO files beside a published data set that has Pascal VOC boxes."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from ..errors import UserError
from ..terminal import say
from .archives import Dataset
from .convert_voc import LISTS, convert_voc
from .inside import open_folder

_SPLITS = ('train', 'val', 'test')


def missing_annotations(dataset: Dataset, root: Path) -> list[Path]:
    """Return the COCO files that are still to be written."""
    if not dataset.voc:
        return []
    lists = root / dataset.voc / LISTS
    paths = [root / _folder(dataset) / f'{split}.json' for split in _SPLITS]
    return [p for p in paths if (lists / f'{p.stem}.txt').is_file() and not p.is_file()]


def write_annotations(dataset: Dataset, root: Path) -> None:
    """Convert the boxes of the splits that have no COCO file yet.

    Raises:
        UserError: An object can't be converted.
    """
    missing = {path.stem for path in missing_annotations(dataset, root)}
    if not missing:
        return
    for split, builder in convert_voc(root / dataset.voc, progress=True).items():
        if split not in missing:
            continue
        if builder.problems:
            raise UserError(f'{dataset.name}: {builder.problems[0]}')
        with (
            open_folder(root, _folder(dataset)) as folder,
            folder.replace(f'{split}.json') as file,
        ):
            file.write(json.dumps(builder.content()).encode())
        say(f'{root / _folder(dataset)}/{split}.json: {builder.summary()}')


def _folder(dataset: Dataset) -> str:
    return f'{PurePosixPath(dataset.voc).parent}/annotations'
