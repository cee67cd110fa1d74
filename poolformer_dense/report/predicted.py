"""The sections made from what the last validation predicted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np

from .figures import Series, chart, heat_map
from .gallery import Picture, draw_detections, draw_label_maps, palette_of
from .parts import NONE, Cell, Chart, Gallery, Part, Row, Table, Text, number, percent
from .scores import NOTHING, SCORE_THRESHOLD, DetectionScores
from .validation import intersection_over_union
from .workdir import Run

# A matrix of more classes is a picture, and its largest cells a table.
_TABLE_CLASSES = 20
_KINDS = {'bbox': 'Box', 'segm': 'Mask'}


class Predictions:
    """What the last validation's predictions are worth, as far as they are there.

    Args:
        run: The training.

    Attributes:
        problem: Why there is nothing, or not everything.
        detections: Detections by kind, bbox and segm.
        confusion: Of label maps, pixels by true class (rows) and predicted class, (K, K).
        classes: Names of the K classes.
        amounts: Objects or pixels of each class, (K,).
        figures: Figures of each class by name, the main one first; (K,) each.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.problem = ''
        self.detections: dict[str, DetectionScores] = {}
        self.confusion: np.ndarray | None = None
        self.classes: list[str] = []
        self.amounts: np.ndarray = np.zeros(0)
        self.figures: dict[str, np.ndarray] = {}
        found = run.validation
        if found is None:
            self.problem = (
                'What the validation predicted was not kept: the training had no validation yet, '
                'no ReportHook, or an evaluator other than CocoMetric, VOCMetric and IoUMetric.'
            )
        elif found['kind'] == 'segmentation':
            self.confusion = np.array(found['confusion'])
            self.classes, self.amounts = found['classes'], self.confusion.sum(1)
            hits, pixels = np.diag(self.confusion), self.amounts.astype(float)
            accuracy = np.divide(hits, pixels, out=np.full_like(pixels, np.nan), where=pixels > 0)
            self.figures = {'IoU': intersection_over_union(self.confusion), 'accuracy': accuracy}
        else:
            for kind in found['results']:
                try:
                    self.detections[kind] = scores = DetectionScores(found, kind)
                # A file that was cut off or is another's can be wrong in any way.
                except (OSError, ValueError, LookupError, TypeError, AssertionError) as error:
                    self.problem = f'The kept predictions ({kind}) can not be evaluated: {error}'
                    continue
                if not self.figures:
                    self.classes, self.amounts = scores.classes, scores.objects
                for name, threshold in (('AP', None), ('AP50', 0.5), ('AP75', 0.75)):
                    self.figures[f'{_KINDS[kind]} {name}'] = scores.average_precision(threshold)

    def by_class(self) -> list[Part]:
        """Return the table of classes."""
        parts: list[Part] = [Text(self.problem)] if self.problem else []
        if not self.figures:
            return parts
        main = next(iter(self.figures.values()))
        rows: list[Row] = []
        for place in np.argsort(-np.nan_to_num(main, nan=-1), kind='stable').tolist():
            cells = [percent(column[place]) for column in self.figures.values()]
            rows.append([self.classes[place], f'{self.amounts[place]:,}', *cells])
        caption = f'{", ".join(self.figures)} of each class in percent, last validation'
        amount = 'objects' if self.detections else 'pixels'
        if self.detections and self.run.metrics[:1] == ['pascal_voc/mAP']:
            text = "APs are COCO's, which differ a bit from the mAP that VOCMetric reports."
            parts.append(Text(text))
        return [*parts, Table(caption, ['class', amount, *self.figures], rows)]

    def precision_recall(self) -> list[Part]:
        """Return curves of precision over recall."""
        if self.confusion is not None:
            return [Text('Label maps carry no scores, so there is no threshold to vary.')]
        if not self.detections:
            return [Text(self.problem)]
        return [part for kind, scores in self.detections.items() for part in _curves(kind, scores)]

    def confusions(self) -> list[Part]:
        """Return the confusion matrix."""
        if self.confusion is not None:
            text = 'Rows are true classes, columns what their pixels are taken for.'
            return [Text(text), _matrix(self.classes, self.confusion, 'pixels', self.confusion)]
        if not self.detections:
            return [Text(self.problem)]
        text = (
            'Rows are true classes, columns what their objects are taken for. Detections that '
            f'score at least {SCORE_THRESHOLD} are matched at IoU 0.5. "{NOTHING}" counts objects '
            'that were missed and, as a row, detections where there is no object.'
        )
        detections = self.detections.get('bbox') or self.detections['segm']
        matrix = detections.confusion()
        mistaken = matrix.copy()
        mistaken[-1], mistaken[:, -1] = 0, 0
        names = [*detections.classes, NOTHING]
        return [Text(text), _matrix(names, matrix, 'objects', mistaken)]

    def gallery(self) -> list[Part]:
        """Return the best, median and worst images."""
        validation, colours = self.run.validation or {}, []
        drawn: Iterator[Picture]
        if self.confusion is not None:
            text = (
                'By mean IoU over the classes that occur in an image or its prediction. Pixels '
                'that do not count are darkened in the ground truth.'
            )
            drawn = draw_label_maps(validation, self.run.folder / 'validation')
            pairs = zip(self.classes, palette_of(validation), strict=False)
            colours = [(name, 'rgb({}, {}, {})'.format(*colour)) for name, colour in pairs]
        elif self.detections:
            text = (
                f'By the F1 of the detections that score at least {SCORE_THRESHOLD}, mean over IoU '
                '0.5 to 0.95. Only these are drawn.'
            )
            shown = self.detections.get('segm') or self.detections['bbox']
            drawn = draw_detections(validation, shown)
        else:
            return [Text(self.problem)]
        try:
            with matplotlib.rc_context({'text.parse_math': False}), warnings.catch_warnings():
                # Of names beyond the border, and of glyphs.
                warnings.simplefilter('ignore', UserWarning)
                pictures = list(drawn)
        except (OSError, KeyError, ImportError) as error:
            return [Text(f'The images can not be drawn: {error}')]
        if not pictures:
            return [Text('No validation image has an object or a detection.')]
        return [Text(text), Gallery(pictures, colours)]


def compare_classes(runs: Sequence[Run]) -> list[Part]:
    """Return a table with a column for the main figure of each training."""
    parts: list[Part] = []
    columns: dict[str, dict[str, Cell]] = {}
    for run in runs:
        found = Predictions(run)
        if found.problem:
            parts.append(Text(f'{run.name}: {found.problem}'))
        for name, values in list(found.figures.items())[:1]:
            cells = map(percent, values)
            columns[f'{run.name}: {name}'] = dict(zip(found.classes, cells, strict=True))
    if columns:
        absent = Cell(NONE, share=0.0)
        classes = dict.fromkeys(name for column in columns.values() for name in column)
        rows: list[Row] = [
            [name, *(c.get(name, absent) for c in columns.values())] for name in classes
        ]
        parts.append(Table('Each class in percent, last validation', ['class', *columns], rows))
    return parts


def _curves(kind: str, scores: DetectionScores) -> list[Part]:
    title = f'{_KINDS[kind]} precision'
    recalls, curves = 100 * scores.recalls, 100 * scores.precision
    means = [
        Series(label, recalls, _mean(curves[chosen].mean(0)))
        for label, chosen in (
            ('IoU 0.5', slice(0, 1)), ('IoU 0.75', slice(5, 6)), ('IoU 0.5 to 0.95', slice(0, 10)),
        )
    ]  # fmt: skip
    curves = curves[0]
    many = len(scores.classes) > 8
    single = [Series(c, recalls, curves[:, i], faint=many) for i, c in enumerate(scores.classes)]
    table = None
    if many:  # a table of as many columns would not be read
        single.append(Series('mean of the classes', recalls, _mean(curves)))
        header = ['class', *(f'recall {r:.0f} %' for r in recalls[::20])]
        rows: list[Row] = [[c, *map(number, curves[::20, i])] for i, c in enumerate(scores.classes)]
        table = Table(f'{title} by class: figures', header, rows, folded=True)

    axes: tuple[str, str] = 'recall in percent', 'precision in percent'
    return [
        chart(f'{title}, mean of the classes', means, *axes, shares=True),
        chart(f'{title} by class at IoU 0.5', single, *axes, shares=True, table=table),
    ]


def _matrix(names: Sequence[str], matrix: np.ndarray, unit: str, mistaken: np.ndarray) -> Part:
    """Return a table of a few classes, or a picture of many with the most frequent mistakes.

    Args:
        names: The K classes.
        matrix: Counts by true class (rows) and predicted class, (K, K).
        unit: What is counted.
        mistaken: The counts among which mistakes are looked for, (K, K).
    """
    totals = matrix.sum(1, keepdims=True)
    shares = matrix / np.maximum(totals, 1)
    if len(names) <= _TABLE_CLASSES:
        shown: list[Row] = []
        for i, name in enumerate(names):
            cells = [
                Cell(f'{share:.0%}', share=float(share), hint=f'{count:,} {unit}')
                for share, count in zip(shares[i], matrix[i], strict=True)
            ]
            shown.append([f'{name} ({totals[i, 0]:,})', *cells])
        caption = f'Share of each true class ({unit}) by prediction'
        return Table(caption, ['true class', *names], shown, matrix=True)
    wrong = mistaken * (1 - np.eye(len(names), dtype=matrix.dtype))
    order = [divmod(i, len(names)) for i in np.argsort(-wrong, axis=None)[:20].tolist()]
    rows = [
        [names[i], names[j], f'{matrix[i, j]:,}', f'{shares[i, j]:.1%}']
        for i, j in order
        if wrong[i, j]
    ]
    header = ['true class', 'taken for', unit, 'share of the class']
    table = Table('The most frequent confusions of two classes', header, rows)
    picture = heat_map(shares, names, f'Confusion matrix of {len(names)} classes')
    return Chart('Confusion matrix', picture, table, wide=True)


def _mean(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', RuntimeWarning)  # of no class at all
        return np.nanmean(values, axis=-1)
