"""The sections made from what the last validation predicted."""

from __future__ import annotations

import warnings
from typing import Any

import matplotlib
import numpy as np

from .figures import Series, heat_map
from .gallery import draw_detections, draw_label_maps, legend
from .parts import Chart, Gallery, Share, Table, Text, chart, number, share
from .scores import NOTHING, SCORE_THRESHOLD, Detections, DetectionScores, SegmentationScores
from .workdir import Run

# A matrix of more classes is a picture, and its largest cells a table.
_TABLE_CLASSES = 20
_KINDS = {'bbox': 'Box', 'segm': 'Mask'}


class Validation:
    """What the last validation's predictions are worth, as far as they are there.

    Attributes:
        detections: Detections by kind, bbox and segm.
        scores: Their scores.
        labels: Scores of label maps.
        problem: Why there is nothing, or not everything.
    """

    def __init__(self, run: Run) -> None:
        self.detections: dict[str, Detections] = {}
        self.scores: dict[str, DetectionScores] = {}
        self.labels: SegmentationScores | None = None
        self.problem = ''
        found = run.validation
        if found is None:
            self.problem = (
                'What the validation predicted was not kept: the training had no validation yet, '
                'no ReportHook, or an evaluator other than CocoMetric and IoUMetric.'
            )
        elif found['kind'] == 'segmentation':
            self.labels = SegmentationScores(found['classes'], np.array(found['confusion']))
        else:
            for kind in found['results']:
                try:
                    detections = Detections(found, kind)
                    self.scores[kind] = detections.scores()
                    self.detections[kind] = detections
                # A file that was cut off or is another's can be wrong in any way.
                except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:
                    self.problem = f'The kept predictions ({kind}) can not be evaluated: {error}'


def by_class_values(validation: Validation) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the classes and their figures by name, the main one first."""
    if validation.labels:
        return validation.labels.classes, {
            'IoU': validation.labels.iou, 'accuracy': validation.labels.accuracy,
        }  # fmt: skip
    values = {}
    for kind, scores in validation.scores.items():
        for name, threshold in (('AP', None), ('AP50', 0.5), ('AP75', 0.75)):
            values[f'{_KINDS[kind]} {name}'] = scores.average_precision(threshold)
    classes = next((scores.classes for scores in validation.scores.values()), [])
    return classes, values


def by_class(validation: Validation) -> list[Any]:
    """Return the table of classes."""
    classes, values = by_class_values(validation)
    parts = [Text(validation.problem)] if validation.problem else []
    if not values:
        return parts
    if validation.labels:
        amounts = validation.labels.confusion.sum(1)
        amount, places = 'pixels', np.argsort(-np.nan_to_num(validation.labels.iou, nan=-1))
    else:
        amounts = next(iter(validation.scores.values())).objects
        amount, main = 'objects', next(iter(values.values()))
        places = np.argsort(-np.nan_to_num(main, nan=-1), kind='stable')
    rows = []
    for place in places.tolist():
        cells = [share(column[place]) for column in values.values()]
        rows.append([classes[place], f'{amounts[place]:,}', *cells])
    caption = f'{", ".join(values)} of each class in percent, last validation'
    return [*parts, Table(caption, ['class', amount, *values], rows)]


def precision_recall(validation: Validation) -> list[Any]:
    """Return curves of precision over recall."""
    if validation.labels:
        return [Text('Label maps carry no scores, so there is no threshold to vary.')]
    if not validation.scores:
        return [Text(validation.problem)]
    parts = []
    for kind, scores in validation.scores.items():
        name = _KINDS[kind]
        means = [
            Series(label, scores.recalls, _mean(scores.precision[chosen].mean(0)))
            for label, chosen in (
                ('IoU 0.5', slice(0, 1)),
                ('IoU 0.75', slice(5, 6)),
                ('IoU 0.5 to 0.95', slice(0, 10)),
            )
        ]
        curves = scores.precision[0]
        many = len(scores.classes) > 8
        single = [
            Series(c, scores.recalls, curves[:, i], faint=many)
            for i, c in enumerate(scores.classes)
        ]
        single += [Series('mean of the classes', scores.recalls, _mean(curves))] if many else []
        options = dict(x_label='recall', y_label='precision', y_range=(0, 1.02), whole_x=False)
        parts += [chart(f'{name} precision, mean of the classes', means, **options)]
        parts += [chart(f'{name} precision by class at IoU 0.5', single, **options)]
        if many:  # a table of as many columns would not be read
            parts[-1].table = Table(
                f'{name} precision by class: figures',
                ['class', *(f'recall {r:.1f}' for r in scores.recalls[::20])],
                [[c, *map(number, curves[::20, i])] for i, c in enumerate(scores.classes)],
                folded=True,
            )
    return parts


def confusion(validation: Validation) -> list[Any]:
    """Return the confusion matrix."""
    if validation.labels:
        names, matrix, unit = validation.labels.classes, validation.labels.confusion, 'pixels'
        text = 'Rows are true classes, columns what their pixels are taken for.'
    elif validation.detections:
        detections = validation.detections.get('bbox') or next(iter(validation.detections.values()))
        names, matrix, unit = [*detections.classes, NOTHING], detections.confusion(), 'objects'
        text = (
            'Rows are true classes, columns what their objects are taken for. Detections that '
            f'score at least {SCORE_THRESHOLD} are matched at IoU 0.5. "{NOTHING}" counts objects '
            'that were missed and, as a row, detections where there is no object.'
        )
    else:
        return [Text(validation.problem)]
    totals = matrix.sum(1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    parts: list[Any] = [Text(text)]
    if len(names) <= _TABLE_CLASSES:
        rows = [
            [
                f'{name} ({totals[i, 0]:,})',
                *(
                    Share(f'{shares[i, j]:.0%}', float(shares[i, j]), f'{matrix[i, j]:,} {unit}')
                    for j in range(len(names))
                ),
            ]
            for i, name in enumerate(names)
        ]
        caption = f'Share of each true class ({unit}) by prediction'
        return [*parts, Table(caption, ['true class', *names], rows, matrix=True)]
    wrong = matrix * (1 - np.eye(len(names), dtype=matrix.dtype))
    if unit == 'objects':
        wrong[-1], wrong[:, -1] = 0, 0
    order = [divmod(i, len(names)) for i in np.argsort(-wrong, axis=None)[:20].tolist()]
    rows = [
        [names[i], names[j], f'{matrix[i, j]:,}', f'{shares[i, j]:.1%}']
        for i, j in order
        if wrong[i, j]
    ]
    header = ['true class', 'taken for', unit, 'share of the class']
    table = Table('The most frequent confusions of two classes', header, rows)
    picture = heat_map(shares, names, f'Confusion matrix of {len(names)} classes')
    return [*parts, Chart('Confusion matrix', picture, table, wide=True)]


def gallery(run: Run, validation: Validation) -> list[Any]:
    """Return the best, median and worst images."""
    if validation.labels:
        text = (
            'By mean IoU over the classes that occur in an image or its prediction. Pixels that do '
            'not count are darkened in the ground truth.'
        )
        drawn = draw_label_maps(run.validation, run.folder / 'validation')
        colours = legend(run.validation)
    elif validation.detections:
        kind = 'segm' if 'segm' in validation.detections else 'bbox'
        text = (
            f'By the F1 of the detections that score at least {SCORE_THRESHOLD}, mean over IoU '
            '0.5 to 0.95. Only these are drawn.'
        )
        scores = validation.scores[kind].image_scores
        drawn = draw_detections(run.validation, validation.detections[kind], scores)
        colours = []
    else:
        return [Text(validation.problem)]
    try:
        with matplotlib.rc_context({'text.parse_math': False}), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # of names beyond the border, of glyphs
            pictures = list(drawn)
    except (OSError, KeyError, ImportError) as error:
        return [Text(f'The images can not be drawn: {error}')]
    if not pictures:
        return [Text('No validation image has an object or a detection.')]
    return [Text(text), Gallery(pictures, colours)]


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # of no class at all
        return np.nanmean(values, axis=-1)
