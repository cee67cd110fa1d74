"""What `CocoDataset` leaves of an annotation file: ``filter_cfg`` and ``indices``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.dataset import BaseDataset


@dataclass(frozen=True)
class Left:
    """What is left of the images of a file.

    Attributes:
        total: How many there are.
        images: How many are left.
        objects: Whether these have an object that training takes.
        taken: How many each filter takes, by its name.
    """

    total: int
    images: int
    objects: bool
    taken: dict[str, int]

    def told(self) -> str:
        """Say which filter takes how many."""
        taken = ', '.join(f'{name} takes {count}' for name, count in self.taken.items() if count)
        return f'of {self.total} images none is left{taken and f": {taken}"}'


def filtered(
    content: Mapping[str, Any], dataset: BaseDataset, indices: int | Sequence[int] | None
) -> Left:
    """Apply the filters of a data set to the content of its annotation file.

    Args:
        content: The parsed JSON; entries that are no objects do not count.
        dataset: The data set; a filter of a subclass's own is not applied.
        indices: Its argument of this name.
    """
    from mmdet.datasets import CocoDataset

    images, categories, objects = (
        [entry for entry in content.get(name, ()) if isinstance(entry, dict)]
        for name in ('images', 'categories', 'annotations')
    )
    classes = dataset.metainfo.get('classes') or ()
    wanted = {_key(c, 'id') for c in categories if c.get('name') in classes}
    objects = [entry for entry in objects if _key(entry, 'category_id') in wanted]
    left, taken = images, {}
    config = dataset.filter_cfg
    if config and not dataset.test_mode and type(dataset).filter_data is CocoDataset.filter_data:
        used = {_key(entry, 'image_id') for entry in objects}
        small = config.get('min_size', 0)
        if config.get('filter_empty_gt', False):
            left = [entry for entry in left if _key(entry, 'id') in used]
            name = f'filter_cfg.filter_empty_gt (no object of {", ".join(classes[:5])})'
            taken[name] = len(images) - len(left)
        large = [entry for entry in left if _is_large(entry, small)]
        taken[f'filter_cfg.min_size={small}'] = len(left) - len(large)
        left = large
    if indices is not None:
        count = len(left)
        if isinstance(indices, int):
            left = left[indices:] if indices < 0 else left[:indices]
        else:
            left = [left[i] for i in indices if -count <= i < count]
        taken[f'indices={indices}'] = count - len(left)
    ids = {_key(entry, 'id') for entry in left}
    learnt = any(_key(entry, 'image_id') in ids and _is_learnt(entry) for entry in objects)
    return Left(len(images), len(left), learnt, taken)


def _key(entry: dict[str, Any], name: str) -> Any:
    value = entry.get(name)
    return value if isinstance(value, (int, str)) else None


def _is_large(image: dict[str, Any], least: float) -> bool:
    sides = image.get('width'), image.get('height')
    return all(isinstance(side, (int, float)) and side >= least for side in sides)


def _is_learnt(entry: dict[str, Any]) -> bool:
    return not entry.get('ignore') and not entry.get('iscrowd')
