"""The categories of a COCO annotation file against the classes of a config."""

from __future__ import annotations

import json
import mmap
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .coco_json import hold_json, take_json
from .faults import first_names

_KEY = b'"categories"'
# Bytes in which the list is looked for first: the file of COCO's training set has 450 MB.
_WINDOW = 1 << 20


def category_ids(
    where: str, categories: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[Any]:
    """Return the ids of categories in the order of their names.

    Args:
        where: The annotation file, for messages.
        categories: Its list.
        names: The classes of a config.

    Raises:
        UserError: A name is not in the list, or twice.
    """
    listed = [category['name'] for category in categories]
    if problem := missing_problem(where, listed, names) or twice_problem(where, listed, names):
        raise UserError(problem)
    ids = {category['name']: category['id'] for category in categories}
    return [ids[name] for name in names]


def missing_problem(where: str | Path, listed: Sequence[str], names: Sequence[str]) -> str:
    """Return which classes an annotation file does not have; nothing if it has all.

    Args:
        where: The annotation file.
        listed: Its categories.
        names: The classes of a config.
    """
    missing = [name for name in names if name not in set(listed)]
    if not missing:
        return ''
    return (
        f'{where} does not have {len(missing)} of the {len(names)} classes of the config '
        f'({first_names(missing)}). For the categories of the file, give each data set '
        f'metainfo=dict(classes={tuple(dict.fromkeys(listed))}) and the heads '
        f'num_classes={len(set(listed))}; if the file only has no object of a class, add the class '
        'to its "categories"'
    )


def twice_problem(where: str | Path, listed: Sequence[str], names: Sequence[str]) -> str:
    """Return which classes an annotation file lists several times; nothing if each once.

    Args:
        where: The annotation file.
        listed: Its categories.
        names: The classes of a config.
    """
    counts = Counter(listed)
    twice = [name for name in names if counts[name] > 1]
    if not twice:
        return ''
    return (
        f'{where} lists categories several times, with different ids ({first_names(twice)}), as '
        'labelling services export a class and its supercategory of one name: '
        'tools/verify_data.py CONFIG --fix OUT writes a file with one category for each name'
    )


def order_problem(where: str | Path, listed: Sequence[str], names: Sequence[str]) -> str:
    """Return that an annotation file has the classes in another order; nothing if it has not."""
    in_file_order = [name for name in listed if name in names]
    if in_file_order == list(names):
        return ''
    return (
        f'labels follow the order of "categories" in {where} there, and it is another one than '
        f'that of metainfo.classes, {tuple(names)}: bring the list of the file into this order'
    )


def read_categories(path: Path) -> list[str]:
    """Return the category names of a COCO annotation file, in its order.

    Where the key occurs once, the file is not parsed whole.

    Raises:
        UserError: The file is not JSON or has no categories.
    """
    names = _names_under_the_only_key(path)
    if names is None:
        try:
            content = take_json(path)
        except (ValueError, RecursionError):
            content = None
        names = _names(content.get('categories') if isinstance(content, dict) else None)
        hold_json(path, content)
    if names is None:
        raise UserError(
            f'{path} is not a COCO annotation file: it has no list of named "categories"'
        )
    return names


def _names_under_the_only_key(path: Path) -> list[str] | None:
    if not path.stat().st_size:
        return None
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        start = content.find(_KEY) + len(_KEY)
        if start < len(_KEY) or content.find(_KEY, start) >= 0:
            return None
        size = _WINDOW
        while True:
            # A cut through the list or through a character fails: look further.
            text = content[start : start + size].decode('utf-8', 'ignore').lstrip(': \t\r\n')
            try:
                return _names(json.JSONDecoder().raw_decode(text)[0])
            except (ValueError, RecursionError):
                if start + size >= len(content):
                    return None
            size *= 16


def _names(categories: Any) -> list[str] | None:
    try:
        return [category['name'] for category in categories]
    except (TypeError, KeyError):
        return None
