"""Time both COCO evaluators on generated detections, side by side, and compare their numbers.

What is timed is what a test does after the last image: from detections to the table of AP.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from ..cli import make_parser

EVALUATORS = ('CocoMetric', 'FasterCocoMetric')
# The library's defaults, the size of COCO's val2017; to import it takes seconds.
IMAGES, DETECTIONS = 5000, 100


def parse_args() -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add('--images', type=int, default=IMAGES, help='number of images')
    add('--detections', type=int, default=DETECTIONS, help='of an image')
    add('--repeat', type=int, default=3, help='runs of each (3)')
    add('--seed', type=int, default=0)
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    from rich.progress import track

    from ..measure.evaluation_time import (
        Content,
        generate_detections,
        time_evaluator,
        write_ground_truth,
    )

    content = Content(images=args.images, detections=args.detections)
    seconds: dict[tuple[str, str], list[float]] = {}
    numbers: dict[tuple[str, str], dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        annotations = Path(folder, 'annotations.json')
        truth = write_ground_truth(annotations, content, args.seed)
        samples = generate_detections(truth, content, args.seed)
        # In turn, so that other load on the machine affects both.
        turns = [(m, e) for m in ('bbox', 'segm') for _ in range(args.repeat) for e in EVALUATORS]
        for turn in track(turns, 'evaluating'):
            metric, evaluator = turn
            numbers[turn], taken = time_evaluator(evaluator, annotations, samples, metric)
            seconds.setdefault(turn, []).append(taken)
    count = sum(len(sample['pred_instances']['scores']) for sample in samples)
    print(
        f'{args.images} images, {len(truth["annotations"])} objects, {count} detections, '
        f'{content.categories} categories; processor time, median of {args.repeat} runs'
    )
    print(f'{"":8}{EVALUATORS[0]:>14}{EVALUATORS[1]:>20}{"ratio":>8}   largest difference')
    for metric in ('bbox', 'segm'):
        first, second = (statistics.median(seconds[metric, e]) for e in EVALUATORS)
        one, other = (numbers[metric, e] for e in EVALUATORS)
        difference = max(abs(one[key] - other[key]) for key in one)
        print(
            f'{metric:8}{first:>12.1f} s{second:>18.1f} s{first / second:>8.1f}'
            f'   {difference:.3f} (AP {one[f"coco/{metric}_mAP"]:.3f})'
        )
