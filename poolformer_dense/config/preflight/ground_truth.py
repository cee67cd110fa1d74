"""Whether evaluators that take the ground truth from the pipeline find it there, in its place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.registry import DATASETS

from ..walk import datasets_of, evaluators_of, type_name
from .plan import Notice, Plan


def check_ground_truth(plan: Plan) -> Iterator[Notice]:
    """What VOCMetric, and CocoMetric without a file, need of the pipelines that they evaluate."""
    for split in (split for split in plan.splits if split != 'train'):
        evaluators = list(evaluators_of(plan.cfg, split))
        for place, dataset in datasets_of(plan.cfg, split):
            pipeline = [t for t in dataset.get('pipeline') or () if isinstance(t, Mapping)]
            steps = [type_name(t) for t in pipeline]
            for where, evaluator in evaluators:
                kind = type_name(evaluator)
                if kind == 'VOCMetric' and (problem := _voc_problem(steps, place)):
                    yield Notice(logging.ERROR, f'{where} (VOCMetric): {problem}')
                if evaluator.get('ann_file') and type_name(dataset) in ('XMLDataset', 'VOCDataset'):
                    yield Notice(
                        logging.ERROR,
                        f'{where} ({kind}) reads {evaluator["ann_file"]}, but {place} has its '
                        f'objects in XML files: {split}_evaluator=dict(_delete_=True, '
                        "type='VOCMetric')",
                    )
                elif kind == 'CocoMetric' and not evaluator.get('ann_file'):
                    packed = [t for t in pipeline if type_name(t) == 'PackDetInputs']
                    if packed and 'instances' not in packed[-1].get('meta_keys', ()):
                        yield Notice(
                            logging.ERROR,
                            f"{where} (CocoMetric): without ann_file it needs 'instances' among "
                            f'the meta_keys of PackDetInputs in {place}.pipeline',
                        )
                if kind == 'VOCMetric' and _shows_other_names(plan, dataset):
                    yield Notice(
                        logging.WARNING,
                        f"{place}: VOCDataset takes a folder of this name for Pascal VOC's own, so "
                        "the table of the log will name VOC's classes instead of yours; "
                        "type='XMLDataset' shows yours",
                    )


def _voc_problem(steps: list[str], place: str) -> str:
    if 'LoadAnnotations' not in steps:
        return (
            f'it takes the objects from the pipeline, and {place}.pipeline has no LoadAnnotations: '
            "put dict(type='LoadAnnotations', with_bbox=True) behind Resize"
        )
    if 'Resize' in steps[steps.index('LoadAnnotations') :]:
        return (
            f'{place}.pipeline loads the objects before Resize, so they would be resized and the '
            'predictions not: put LoadAnnotations behind Resize'
        )
    return ''


def _shows_other_names(plan: Plan, dataset: Mapping[str, Any]) -> bool:
    root = f'{dataset.get("data_root")}{(dataset.get("data_prefix") or {}).get("sub_data_root")}'
    own = (dataset.get('metainfo') or {}).get('classes')
    if type_name(dataset) != 'VOCDataset' or not own:
        return False
    with DATASETS.switch_scope_and_registry(plan.cfg.default_scope) as registry:
        published = registry.get('VOCDataset').METAINFO['classes']
    return any(year in root for year in ('VOC2007', 'VOC2012')) and tuple(own) != published
