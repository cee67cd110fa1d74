"""Checks that cost seconds and come before the model, each file one question.

Each check is a function in `CHECKS` that yields what it finds. Training and testing run them all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

from mmengine.config import Config
from mmengine.logging import print_log

from ...errors import UserError
from ...terminal import printable
from .classes import check_classes
from .compiler import check_compiler
from .contents import check_annotations
from .crops import check_crop
from .evaluation import check_evaluators
from .folders import check_folders
from .ground_truth import check_ground_truth
from .head_losses import check_losses
from .loaders import check_shared_memory
from .model import check_backbone
from .monitors import check_monitors
from .packages import check_faster_coco, check_loggers
from .plan import Notice, Plan
from .precision import check_precision
from .starting_weights import check_checkpoints
from .unlabelled import check_unlabelled

# The quickest first: seconds for the contents of COCO's annotation files.
CHECKS: Sequence[Callable[[Plan], Iterator[Notice]]] = (
    check_folders,
    check_loggers,
    check_shared_memory,
    check_faster_coco,
    check_precision,
    check_compiler,
    check_backbone,
    check_losses,
    check_crop,
    check_classes,
    check_evaluators,
    check_unlabelled,
    check_monitors,
    check_ground_truth,
    check_checkpoints,
    check_annotations,
)


def check_run(cfg: Config, splits: Sequence[str], unsafe_load: bool = False) -> None:
    """Check what a run needs; see `Plan` for the arguments.

    Raises:
        UserError: Data is missing or has errors that show without
            opening every image, an annotation file's categories or the model's ``num_classes``
            disagree with the classes, an argument of the backbone is wrong, a checkpoint can't be
            read, a package that a logger or an evaluator imports is not installed, the work
            directory can't be written, shared memory holds no batch, the device does not
            compute in the training's precision, or there is no compiler for torch.compile.
    """
    plan = Plan(cfg, splits, unsafe_load)
    for check in CHECKS:
        for finding in check(plan):
            if finding.level >= logging.ERROR:
                raise UserError(finding.text)
            print_log(printable(finding.text), 'current', finding.level)
