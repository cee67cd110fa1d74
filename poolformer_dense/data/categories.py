"""The categories of a COCO annotation file against the classes of a config."""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from .faults import first_names


def category_problem(path: Path, names: Sequence[str], classes: Sequence[str]) -> str:
    """Return why an annotation file does not fit the classes of a config; nothing if it does.

    Args:
        path: The annotation file.
        names: Its categories, in its order.
        classes: The config's.
    """
    missing = [name for name in classes if name not in names]
    if missing:
        return (
            f'{path} does not have {len(missing)} of the {len(classes)} classes of the config '
            f'({first_names(missing)}). For the categories of the file, give each data set '
            f'metainfo=dict(classes={tuple(names)}) and the heads num_classes={len(names)}'
        )
    in_file_order = [name for name in names if name in classes]
    if in_file_order != list(classes):
        return (
            'the classes of the config are in another order than the categories of '
            f'{path}, and labels follow the file. Set metainfo.classes to {tuple(in_file_order)}'
        )
    return ''


def read_categories(path: Path) -> list[str]:
    """Return the category names of a COCO annotation file, in its order.

    Only the ``categories`` entry is parsed: the file of COCO's training set has 450 MB.

    Raises:
        UserError: The file is not JSON or has no categories.
    """
    with path.open('rb') as file:
        if path.stat().st_size:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                start = content.rfind(b'"categories"')
                if start >= 0:
                    tail = content[start + len(b'"categories"') :].decode('utf-8', 'replace')
                    try:
                        categories, _ = json.JSONDecoder().raw_decode(tail.lstrip(': \t\r\n'))
                        return [category['name'] for category in categories]
                    except (ValueError, TypeError, KeyError):
                        pass
    raise UserError(f'{path} is not a COCO annotation file: it has no list of named "categories"')
