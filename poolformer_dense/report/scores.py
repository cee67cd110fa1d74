"""What a validation's predictions are worth: by class, by threshold, by image."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from .validation import intersection_over_union

# Detections below this score are left out of confusions, of images' scores and of pictures.
SCORE_THRESHOLD = 0.3
NOTHING = 'nothing'


@dataclass
class DetectionScores:
    """Scores of detections as COCO defines them, at most 100 detections an image.

    Attributes:
        classes: Names of the K classes.
        objects: Number of objects of each class, without crowds; (K,).
        thresholds: The T IoU thresholds.
        recalls: The R recalls at which precision is taken.
        precision: By threshold, recall and class, (T, R, K); NaN for classes without objects.
        image_scores: Mean over the thresholds of the F1 of the detections that score at least
            `SCORE_THRESHOLD`, by image id; without images that have neither objects nor detections.
    """

    classes: list[str]
    objects: np.ndarray
    thresholds: np.ndarray
    recalls: np.ndarray
    precision: np.ndarray
    image_scores: dict[int, float]

    def average_precision(self, threshold: float | None = None) -> np.ndarray:
        """Return the AP of each class, at one IoU threshold or over all; (K,)."""
        chosen = slice(None)
        if threshold is not None:
            chosen = [int(np.argmin(abs(self.thresholds - threshold)))]
        return self.precision[chosen].mean((0, 1))


class Detections:
    """Ground truth and detections of one kind, loaded once for all that is computed of them.

    Args:
        validation: What `describe_detection` returned.
        kind: bbox or segm.

    Raises:
        FileNotFoundError: The annotations or results are not where they were.
        ValueError: They can't be read.
    """

    def __init__(self, validation: Mapping[str, Any], kind: str) -> None:
        self.kind = kind
        results = json.loads(Path(validation['results'][kind]).read_text())
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            self.truth = COCO(validation['ann_file'])
            if kind == 'segm':
                for result in results:
                    result.pop('bbox')  # else areas would be those of boxes
            self.found = self.truth.loadRes(results) if results else self._none()
        wanted = set(validation['classes'])
        self.categories = [c for c, cat in self.truth.cats.items() if cat['name'] in wanted]
        self.classes = [self.truth.cats[c]['name'] for c in self.categories]

    def _none(self) -> COCO:
        empty = COCO()
        empty.dataset = {k: self.truth.dataset[k] for k in ('images', 'categories')}
        empty.dataset['annotations'] = []
        empty.createIndex()
        return empty

    def _evaluate(self, thresholds: Sequence[float] | None, by_class: bool) -> COCOeval:
        evaluation = COCOeval(self.truth, self.found, self.kind)
        params = evaluation.params
        params.catIds = self.categories
        params.useCats = int(by_class)
        params.maxDets = [100]
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        if thresholds is not None:
            params.iouThrs = np.array(thresholds)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
        return evaluation

    def scores(self) -> DetectionScores:
        """Evaluate the detections class by class."""
        evaluation = self._evaluate(None, by_class=True)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.accumulate()
        precision = evaluation.eval['precision'][:, :, :, 0, 0]
        objects = dict.fromkeys(self.categories, 0)
        hits: dict[int, Any] = defaultdict(float)
        mistakes: dict[int, Any] = defaultdict(float)
        for image in filter(None, evaluation.evalImgs):
            real = int((~np.asarray(image['gtIgnore'], dtype=bool)).sum())
            objects[image['category_id']] += real
            counted = ~np.asarray(image['dtIgnore'], dtype=bool)  # (T, D)
            counted &= np.asarray(image['dtScores']) >= SCORE_THRESHOLD
            matched = (np.asarray(image['dtMatches']) > 0) & counted
            true = matched.sum(1)
            hits[image['image_id']] += 2 * true
            mistakes[image['image_id']] += real - true + (counted & ~matched).sum(1)
        images = {}
        for image_id, true in hits.items():
            total = true + mistakes[image_id]
            if total.all():
                images[image_id] = float(np.mean(true / total))
        return DetectionScores(
            self.classes,
            np.array([objects[c] for c in self.categories]),
            evaluation.params.iouThrs,
            evaluation.params.recThrs,
            np.where(precision < 0, np.nan, precision),
            images,
        )

    def confusion(self) -> np.ndarray:
        """Match detections with objects at IoU 0.5 whatever their classes, the surest first.

        Returns:
            Counts by true class (rows) and predicted class, (K + 1, K + 1); the last of each is
            `NOTHING`: detections of no object, and objects without detection.
        """
        evaluation = self._evaluate([0.5], by_class=False)
        place = {category: i for i, category in enumerate(self.categories)}
        matrix = np.zeros((len(place) + 1, len(place) + 1), dtype=np.int64)

        def of(annotations: COCO, identity: float) -> int | None:
            return place.get(annotations.anns[int(identity)]['category_id'])

        for image in filter(None, evaluation.evalImgs):
            found = set()
            sure = np.asarray(image['dtScores']) >= SCORE_THRESHOLD
            counted = sure & ~np.asarray(image['dtIgnore'][0], dtype=bool)
            for detection, match in zip(
                np.asarray(image['dtIds'])[counted],
                np.asarray(image['dtMatches'])[0][counted],
                strict=True,
            ):
                true = of(self.truth, match) if match else len(place)
                if true is not None:
                    matrix[true, of(self.found, detection)] += 1
                found.add(int(match))
            for identity, ignored in zip(image['gtIds'], image['gtIgnore'], strict=True):
                true = of(self.truth, identity)
                if not ignored and int(identity) not in found and true is not None:
                    matrix[true, -1] += 1
        return matrix


@dataclass
class SegmentationScores:
    """Scores of label maps.

    Attributes:
        classes: Names of the K classes.
        confusion: Pixels by true class (rows) and predicted class, (K, K).
    """

    classes: list[str]
    confusion: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """IoU of each class, NaN where it does not occur; (K,)."""
        return intersection_over_union(self.confusion)

    @property
    def accuracy(self) -> np.ndarray:
        """Share of each class's pixels that are found, NaN where it has none; (K,)."""
        pixels = self.confusion.sum(1).astype(float)
        hits = np.diag(self.confusion)
        return np.divide(hits, pixels, out=np.full_like(pixels, np.nan), where=pixels > 0)
