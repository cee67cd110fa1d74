"""mmdet's COCO data set and metric, with labels in the order of ``metainfo.classes``.

Upstream numbers labels in the order of the annotation file's categories, whatever the order of
``metainfo.classes``, so that the same label could be another class in each file.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation import CocoMetric

from ..errors import UserError
from .categories import category_ids
from .coco_json import no_collector, take_json


class NamedCOCO(COCO):
    """mmdet's COCO API, which returns the ids of categories in the order of their names."""

    def __init__(self, annotation_file: str) -> None:
        super().__init__()
        self.path = annotation_file
        self.dataset = take_json(annotation_file)
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Any = (), cat_ids: Any = ()
    ) -> list[Any]:
        """Return category ids; those of names in the order of the names.

        Raises:
            UserError: The file lacks a name, or has it twice.
        """
        if len(cat_names) and not len(sup_names) and not len(cat_ids):
            return category_ids(self.path, self.dataset['categories'], cat_names)
        return super().get_cat_ids(cat_names, sup_names, cat_ids)


class OrderedCocoDataset(CocoDataset):
    """Labels follow ``metainfo.classes``, whatever the order of the file's categories."""

    COCOAPI = NamedCOCO
    plain_type: type[CocoDataset] = CocoDataset

    def load_data_list(self) -> list[dict]:
        with no_collector():
            return super().load_data_list()

    def filter_data(self) -> list[dict]:
        left = super().filter_data()
        if not left:
            raise UserError(
                f'{self.ann_file}: of {len(self.data_list)} images {self.plain_type.__name__} '
                f'leaves none, with filter_cfg={self.filter_cfg}'
            )
        return left

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Combined classes have no name by which worker processes could import them.
        return _new, (self.plain_type,), *super().__reduce_ex__(protocol)[2:]


class OrderedCocoMetric(CocoMetric):
    """Labels follow ``metainfo.classes``; the images that were predicted are those that count.

    Upstream counts every image of the annotation file: of a part of a data set (``indices``) the
    rest would be missed objects.
    """

    # For each label the place of its category among `cat_ids`; None before an evaluation.
    places: np.ndarray | None = None

    def compute_metrics(self, results: list) -> dict[str, float]:
        if self._coco_api is not None:
            categories = self._coco_api.dataset['categories']
            ids = category_ids('the annotation file', categories, self.dataset_meta['classes'])
            # COCOeval sorts the ids, and upstream's table of classes goes by their places.
            self.cat_ids = sorted(ids)
            self.places = np.array([self.cat_ids.index(i) for i in ids], dtype=np.int64)
            self.img_ids = [truth['img_id'] for truth, _ in results]
        return super().compute_metrics(results)

    def results2json(self, results: Sequence[dict], outfile_prefix: str) -> dict:
        if self.places is not None:
            results = [{**found, 'labels': self.places[found['labels']]} for found in results]
        return super().results2json(results, outfile_prefix)


@functools.cache
def ordered(kind: Any) -> type[Any]:
    """Return a data set's or a metric's class with labels in the order of the classes.

    Others than those that number labels as `CocoDataset` and `CocoMetric` do are returned as
    they are.
    """
    ours = _ours(kind)
    if ours is None or issubclass(kind, ours):
        return kind
    body: dict[str, Any] = dict(__module__=kind.__module__, __doc__=kind.__doc__)
    if ours is OrderedCocoDataset:
        body['plain_type'] = kind
    return type(kind.__name__, (ours, kind), body)


def _ours(kind: Any) -> type[Any] | None:
    if issubclass(kind, CocoDataset):
        # LVIS and panoptic annotations are read in other ways.
        lvis = any(base.__module__ == 'mmdet.datasets.lvis' for base in kind.__mro__)
        same = kind.COCOAPI in (COCO, NamedCOCO) and not lvis
        return OrderedCocoDataset if same else None
    if issubclass(kind, CocoMetric):
        computed = kind.compute_metrics.__module__, kind.results2json.__module__
        return OrderedCocoMetric if set(computed) <= _METRICS else None
    return None


_METRICS = {
    __name__,
    'mmdet.evaluation.metrics.coco_metric',
    'mmdet.evaluation.metrics.faster_coco_metric',
}


def _new(kind: Any) -> Any:
    return object.__new__(ordered(kind))
