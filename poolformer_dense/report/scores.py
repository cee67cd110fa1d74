"""What a detector's predictions are worth: by class, by threshold, by image."""

from __future__ import annotations

import contextlib
import io
import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# Detections below this score are left out of confusions, of images' scores and of pictures.
SCORE_THRESHOLD = 0.3
NOTHING = 'nothing'


class DetectionScores:
    """Ground truth and detections of one kind, and their scores as COCO defines them.

    At most 100 detections of an image count.

    Args:
        validation: What `keep_detections` returned.
        kind: bbox or segm.

    Attributes:
        truth: The ground truth.
        found: The detections.
        classes: Names of the K classes.
        objects: Number of objects of each class, without crowds; (K,).
        thresholds: The T IoU thresholds.
        recalls: The R recalls at which precision is taken.
        precision: By threshold, recall and class, (T, R, K); NaN for classes without objects.
        image_scores: Mean over the thresholds of the F1 of the detections that score at least
            `SCORE_THRESHOLD`, by image id; without images that have neither objects nor detections.

    Raises:
        FileNotFoundError: The annotations or results are not where they were.
        ValueError: They can't be read.
    """

    def __init__(self, validation: Mapping[str, Any], kind: str) -> None:
        self.kind = kind
        results = json.loads(Path(validation['results'][kind]).read_text())
        if kind == 'segm':
            for result in results:
                result.pop('bbox')  # else areas would be those of boxes
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints
            self.truth = COCO(validation['ann_file'])
            if results:
                self.found = self.truth.loadRes(results)
            else:
                self.found = COCO()
                self.found.dataset.update(self.truth.dataset, annotations=[])
                self.found.createIndex()
        wanted = set(validation['classes'])
        # By their ids, as COCOeval sorts them.
        categories = sorted(c for c, cat in self.truth.cats.items() if cat['name'] in wanted)
        # A validation may be of a part of the file.
        predicted = validation.get('images')
        self._images = [i for i in self.truth.imgs if predicted is None or str(i) in predicted]
        self._labels = {category: label for label, category in enumerate(categories)}
        self.classes = [self.truth.cats[c]['name'] for c in categories]
        self._score()

    def label(self, annotation: Mapping[str, Any]) -> int | None:
        """Return the class of an object or detection, None if it is of no class that counts."""
        return self._labels.get(annotation['category_id'])

    def annotations(self, image_id: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return an image's objects, and the detections that score enough."""
        truth, found = (
            [a for a in coco.imgToAnns[image_id] if a['category_id'] in self._labels]
            for coco in (self.truth, self.found)
        )
        return truth, [a for a in found if a['score'] >= SCORE_THRESHOLD]

    def average_precision(self, threshold: float | None = None) -> np.ndarray:
        """Return the AP of each class, at one IoU threshold or over all; (K,)."""
        chosen: Any = slice(None)
        if threshold is not None:
            chosen = [int(np.argmin(abs(self.thresholds - threshold)))]
        return self.precision[chosen].mean((0, 1))

    def _evaluate(self, by_class: bool) -> COCOeval:
        evaluation = COCOeval(self.truth, self.found, self.kind)
        params = evaluation.params
        params.catIds, params.imgIds = list(self._labels), self._images
        params.useCats = int(by_class)
        params.maxDets = [100]
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]
        if not by_class:
            params.iouThrs = np.array([0.5])
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        return evaluation

    def _score(self) -> None:
        evaluation = self._evaluate(by_class=True)
        objects = np.zeros(len(self.classes), dtype=np.int64)
        hits: dict[int, Any] = defaultdict(float)
        mistakes: dict[int, Any] = defaultdict(float)
        for image in filter(None, evaluation.evalImgs):
            real = int((~np.asarray(image['gtIgnore'], dtype=bool)).sum())
            objects[self._labels[image['category_id']]] += real
            counted = ~np.asarray(image['dtIgnore'], dtype=bool)  # (T, D)
            counted &= np.asarray(image['dtScores']) >= SCORE_THRESHOLD
            matched = (np.asarray(image['dtMatches']) > 0) & counted
            true = matched.sum(1)
            hits[image['image_id']] += 2 * true
            mistakes[image['image_id']] += real - true + (counted & ~matched).sum(1)
        self.objects = objects
        self.image_scores = {}
        for image_id, true in hits.items():
            total = true + mistakes[image_id]
            if total.all():
                self.image_scores[image_id] = float(np.mean(true / total))
        self.thresholds, self.recalls = evaluation.params.iouThrs, evaluation.params.recThrs
        precision = evaluation.eval['precision'][:, :, :, 0, 0]
        self.precision = np.where(precision < 0, np.nan, precision)

    def confusion(self) -> np.ndarray:
        """Match detections with objects at IoU 0.5, regardless of class, highest scores first.

        Returns:
            Counts by true class (rows) and predicted class, (K + 1, K + 1); the last of each is
            `NOTHING`: detections of no object, and objects without detection.
        """
        nothing = len(self.classes)
        matrix = np.zeros((nothing + 1, nothing + 1), dtype=np.int64)
        for image in filter(None, self._evaluate(by_class=False).evalImgs):
            found = set()
            sure = np.asarray(image['dtScores']) >= SCORE_THRESHOLD
            counted = sure & ~np.asarray(image['dtIgnore'][0], dtype=bool)
            detections = np.asarray(image['dtIds'])[counted]
            matches = np.asarray(image['dtMatches'])[0][counted].astype(int)
            for detection, match in zip(detections, matches, strict=True):
                true = self.label(self.truth.anns[match]) if match else nothing
                if true is not None:
                    matrix[true, self.label(self.found.anns[detection])] += 1
                found.add(match)
            for identity, ignored in zip(image['gtIds'], image['gtIgnore'], strict=True):
                true = self.label(self.truth.anns[identity])
                if not ignored and identity not in found and true is not None:
                    matrix[true, -1] += 1
        return matrix
