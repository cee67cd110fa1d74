"""A tiny but real run, which every test of `poolformer_dense.runner` can be about.

`tiny_runner(folder)` is a Runner of ours whose step takes a few milliseconds, and in which all
that a resumed run must bring back matters: batch norm, dropout,
augmentation that draws from python, numpy and torch, AdamW, warm-up and decay, optionally EMA,
accumulated gradients, workers and two ranks. `tiny_runner(folder).train()` is the run;
`tiny_runner(folder, resume=True).train()` goes on from the last checkpoint in the folder. There
are `STEPS_PER_EPOCH` iterations in an epoch of each rank, whatever the number of ranks.

`digest(runner)` says what a run ended with: compare two of them with ``==``; a difference names its
part. `fork(function, ...)` runs a function in a child of the warmed parent: `Child.result()` is
what it returned, `Child.pid` is there to be killed. `fork_ranks(count, function, ...)` runs it in
as many children that talk through gloo; the runner needs ``launcher='pytorch'`` then.

`demo_config(root, name, shapes, work_dir)` is a stock demo config with a small backbone, for what
only a detector or a segmentor shows.
"""

from __future__ import annotations

import faulthandler
import hashlib
import itertools
import logging
import os
import pickle
import random
import signal
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseModel, is_model_wrapper
from mmengine.registry import DATASETS, HOOKS, METRICS, MODELS
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import Dataset

from poolformer_dense.config.load import load_config
from poolformer_dense.runner.runner import build_runner

BATCH = 2
_LONGEST = 600  # seconds of a child
_numbers = itertools.count()  # mmengine's visualizer is one for each name of an experiment
STEPS_PER_EPOCH = 6
CLASSES = ('dark', 'bright')


@MODELS.register_module()
class TinyModel(BaseModel):
    """Two convolutions with batch norm and dropout, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout2d(0.2),
            nn.Conv2d(8, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(8, len(CLASSES))

    def forward(
        self, inputs: list[Tensor] | Tensor, labels: Tensor, mode: str = 'tensor'
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        images = torch.stack(inputs) if isinstance(inputs, (list, tuple)) else inputs
        logits = self.classifier(self.features(images).mean((2, 3)))  # (N, classes)
        labels = torch.as_tensor(labels)
        if mode == 'loss':
            return dict(loss=nn.functional.cross_entropy(logits, labels))
        pairs = zip(logits, labels, strict=True)
        return [dict(scores=scores, label=label) for scores, label in pairs]


@DATASETS.register_module()
class TinyDataset(Dataset):
    """Noise around one of two means, augmented with three random generators.

    Args:
        length: Images.
        augment: Whether to augment.
        reads: A file to which a line with the index is added at every image that is made.
    """

    def __init__(self, length: int, augment: bool = True, reads: str | None = None) -> None:
        self.length, self.augment, self.reads = length, augment, reads
        self.metainfo = dict(classes=CLASSES)

    def __len__(self) -> int:
        return self.length

    def get_data_info(self, index: int) -> dict[str, Any]:
        width = 8 if index % 3 else 6
        return dict(img_id=index, width=width, height=14 - width)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if self.reads:
            with open(self.reads, 'a') as file:
                file.write(f'{index}\n')
        label = index % len(CLASSES)
        image = np.random.RandomState(index).randn(3, 8, 8) * 0.5 + label
        if self.augment:
            if random.random() < 0.5:
                image = image[:, :, ::-1]
            image = image + np.random.randn(*image.shape) * 0.1
        image = torch.tensor(image.copy(), dtype=torch.float32)
        if self.augment:
            image = image * (1 + 0.1 * torch.rand(3, 1, 1))
        return dict(inputs=image, labels=label)


@METRICS.register_module()
class TinyMetric(BaseMetric):
    """Accuracy, and the mean score, which shows the smallest change of a weight."""

    default_prefix = 'tiny'

    def process(self, data_batch: dict, data_samples: list[dict[str, Tensor]]) -> None:
        for sample in data_samples:
            right = sample['scores'].argmax() == sample['label']
            self.results.append((float(right), float(sample['scores'].sum())))

    def compute_metrics(self, results: list[tuple[float, float]]) -> dict[str, float]:
        right, scores = np.mean(results, axis=0)
        return dict(accuracy=float(right), score=float(scores))


@HOOKS.register_module()
class LossRecord(Hook):
    """Keeps each iteration's loss, and writes it to a file so that killed runs are included."""

    priority = 'VERY_HIGH'

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.losses: dict[int, float] = {}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        loss = outputs['loss'].item()
        self.losses[runner.iter] = loss
        if self.path and runner.rank == 0:
            with open(self.path, 'a') as file:
                file.write(f'{runner.iter} {loss.hex()}\n')


def tiny_config(
    work_dir: str | Path,
    *,
    loop: str = 'epoch',
    workers: int = 0,
    steps: int = 12,
    accumulate: int = 1,
    ema: bool = False,
    amp: bool = False,
    ranks: int = 1,
    launcher: str = 'none',
    resume: bool = False,
    load_from: str | Path | None = None,
    seed: int | None = 0,
    length: int | None = None,
    reads: str | None = None,
    hooks: Iterable[dict[str, Any]] = (),
    checkpoint: dict[str, Any] | None = None,
) -> Config:
    """The config of a tiny run.

    Args:
        work_dir: Where logs and checkpoints go.
        loop: ``epoch`` or ``iter``.
        workers: Of the training's loader.
        steps: Iterations altogether; whole epochs with ``loop='epoch'``.
        accumulate: Iterations per optimizer step.
        ema: Whether to keep an average of the weights.
        amp: Whether to train in mixed precision.
        ranks: Processes; the data are so many that an epoch stays `STEPS_PER_EPOCH` long.
        launcher: ``pytorch`` for a process of several.
        resume: Whether to go on, from load_from or from the newest checkpoint in work_dir.
        load_from: A checkpoint.
        seed: None for one drawn at random.
        length: Images, instead of one epoch of `STEPS_PER_EPOCH`.
        reads: See `TinyDataset`.
        hooks: Custom hooks, in addition.
        checkpoint: Changes of default_hooks.checkpoint, which saves every epoch (``epoch``) or
            every `STEPS_PER_EPOCH` iterations (``iter``).
    """
    by_epoch = loop == 'epoch'
    length = length or BATCH * STEPS_PER_EPOCH * ranks
    if by_epoch:
        train_cfg = dict(
            type='EpochBasedTrainLoop', max_epochs=steps // STEPS_PER_EPOCH, val_interval=1
        )
        interval = 1
    else:
        interval = STEPS_PER_EPOCH
        train_cfg = dict(type='IterBasedTrainLoop', max_iters=steps, val_interval=interval)
    decay = dict(type='CosineAnnealingLR', by_epoch=by_epoch, T_max=8, eta_min=1e-4)
    custom_hooks = [dict(type='LossRecord'), *hooks]
    if ema:
        custom_hooks.append(dict(type='EMAHook', momentum=0.1))
    return Config(
        dict(
            default_scope='mmengine',
            work_dir=str(work_dir),
            experiment_name=f'tiny{os.getpid()}_{next(_numbers)}_{Path(work_dir).name}',
            launcher=launcher,
            resume=resume,
            load_from=str(load_from) if load_from else None,
            randomness=dict(seed=seed),
            model=dict(type='TinyModel'),
            train_dataloader=dict(
                batch_size=BATCH,
                num_workers=workers,
                persistent_workers=workers > 0,
                sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
                dataset=dict(type='TinyDataset', length=length, reads=reads),
            ),
            val_dataloader=dict(
                batch_size=BATCH,
                num_workers=0,
                sampler=dict(type='DefaultSampler', shuffle=False),
                dataset=dict(type='TinyDataset', length=4 * ranks, augment=False),
            ),
            val_evaluator=dict(type='TinyMetric'),
            train_cfg=train_cfg,
            val_cfg=dict(),
            optim_wrapper=dict(
                type='AmpOptimWrapper' if amp else 'OptimWrapper',
                optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.01),
                accumulative_counts=accumulate,
                clip_grad=dict(max_norm=1.0),
            ),
            param_scheduler=[
                dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=4),
                decay,
            ],
            default_hooks=dict(
                logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=by_epoch),
                checkpoint=dict(
                    type='AtomicCheckpointHook', interval=interval, by_epoch=by_epoch, minutes=0
                )
                | (checkpoint or {}),
            ),
            log_processor=dict(window_size=3, by_epoch=by_epoch),
            custom_hooks=custom_hooks,
            env_cfg=dict(mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0)),
            log_level='WARNING',
        ),
        format_python_code=False,  # which takes longer than the run
    )


def tiny_runner(work_dir: str | Path, **options: Any) -> Runner:
    """A Runner of the tiny run; the options are those of `tiny_config`."""
    return build_runner(tiny_config(work_dir, **options))


DEMO = """
_base_ = '{root}/configs/demo/{name}_poolformer_s12.py'

model = dict(
    backbone=dict(
        arch=dict(_delete_=True, depths=(1, 1, 1, 1), dims={channels}), drop_path_rate=0.2
    ),
    neck=dict(in_channels={used}, out_channels=16),
    {heads}
)
"""
HEADS = dict(
    retinanet='bbox_head=dict(in_channels=16, feat_channels=16, stacked_convs=1)',
    mask_rcnn="""
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=dict(in_channels=16, fc_out_channels=32),
        mask_roi_extractor=dict(out_channels=16),
        mask_head=dict(in_channels=16, conv_out_channels=16, num_convs=1),
    ),
""",
    fpn='decode_head=dict(in_channels=[16, 16, 16, 16], channels=16)',
)


def write_demo(root: Path, name: str, folder: Path) -> Path:
    """Write a config to ``folder``: a stock one of configs/demo with a small model.

    Run it with ``data_root`` set to the ``coco`` or ``ade`` folder of the fixture `shapes`.

    Args:
        root: The repository.
        name: retinanet, mask_rcnn or fpn.
        folder: Where to write it.
    """
    channels = [8, 8, 16, 16]
    used = channels[1:] if name == 'retinanet' else channels
    heads = HEADS[name]
    path = folder / f'small_{name}.py'
    path.write_text(DEMO.format(root=root, name=name, channels=channels, used=used, heads=heads))
    return path


def demo_config(
    root: Path,
    name: str,
    shapes: Path,
    work_dir: Path,
    overrides: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> Config:
    """The config of `write_demo`, read as the tools do.

    Args:
        root: The repository.
        name: As for `write_demo`.
        shapes: The folder of the fixture of that name.
        work_dir: Where logs and checkpoints go.
        overrides: As ``--cfg-options``.
        launcher: As for the tools.
    """
    work_dir.mkdir(parents=True, exist_ok=True)
    path = write_demo(root, name, work_dir)
    layout = 'ade' if name == 'fpn' else 'coco'
    options = {'data_root': f'{shapes}/{layout}'} | (overrides or {})
    cfg = load_config(str(path), options, str(work_dir), launcher)
    return Config(cfg.to_dict(), filename=cfg.filename, format_python_code=False)


def train_listening(runner: Runner) -> str:
    """Train, and return what the run's log was told, a message a line."""
    said: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    runner.logger.addHandler(listener)
    try:
        runner.train()
    finally:
        runner.logger.removeHandler(listener)
    return '\n'.join(said)


def digest(runner: Runner) -> dict[str, str]:
    """Checksums of what a training ended with, by part."""
    model = runner.model.module if is_model_wrapper(runner.model) else runner.model
    parts = {
        'weights': model.state_dict(),
        'optimizer': runner.optim_wrapper.state_dict(),
        'schedulers': [scheduler.state_dict() for scheduler in runner.param_schedulers],
        'iteration': (runner.epoch, runner.iter),
        'draws': (random.random(), np.random.rand(), torch.rand(1).item()),
        'logged': _logged(runner),
        'ema': [h.ema_model.state_dict() for h in runner.hooks if isinstance(h, EMAHook)],
    }
    return {name: checksum(part) for name, part in parts.items()}


def _logged(runner: Runner) -> dict[str, Any]:
    scalars = runner.message_hub.log_scalars
    return {name: scalars[name].data for name in sorted(scalars) if 'time' not in name}


def checksum(data: Any) -> str:
    """One checksum of nested containers, tensors, arrays and numbers, to the bit."""
    total = hashlib.sha256()
    _update(total, data)
    return total.hexdigest()[:16]


def _update(total: Any, data: Any) -> None:
    if isinstance(data, Tensor):
        data = data.detach().cpu().numpy()
    if isinstance(data, np.ndarray):
        total.update(f'{data.dtype}{data.shape}'.encode() + data.tobytes())
    elif isinstance(data, dict):
        for key in sorted(data, key=str):
            total.update(str(key).encode())
            _update(total, data[key])
    elif isinstance(data, (list, tuple)):
        total.update(f'{len(data)}['.encode())
        for item in data:
            _update(total, item)
    else:
        total.update(repr(data).encode())


@dataclass
class Child:
    """A forked process.

    Attributes:
        pid: Its number.
        path: Where it writes what its function returned.
    """

    pid: int
    path: Path

    def wait(self) -> int:
        """Wait for its end; return its exit code, negative for a signal."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def result(self) -> Any:
        """Wait for its end; return what the function returned."""
        code = self.wait()
        said = self.path.read_text(errors='replace') if code and self.path.exists() else ''
        assert code == 0, f'the child ended with {code}: {said}'
        return pickle.loads(self.path.read_bytes())


def fork(path: Path, function: Callable[..., Any], *arguments: Any, **options: Any) -> Child:
    """Run a function in a child.

    Its exit code is 0, 1 after an exception, or what it gave to sys.exit; after ten minutes
    SIGALRM ends it, with the stacks of its threads in stderr.

    Args:
        path: A file for what the function returns or raises.
        function: What to run.
        arguments: For the function.
        options: For the function.
    """
    pid = os.fork()
    if pid:
        return Child(pid, path)
    faulthandler.register(signal.SIGALRM, file=2, chain=True)
    signal.alarm(_LONGEST)
    code = 1
    try:
        path.write_bytes(pickle.dumps(function(*arguments, **options)))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        path.write_text(traceback.format_exc())
    finally:
        os._exit(code)


def fork_ranks(
    count: int, folder: Path, function: Callable[..., Any], *arguments: Any, **options: Any
) -> list[Child]:
    """Run a function in ``count`` children, each a rank of one gloo group."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / 'meeting'
    meeting.unlink(missing_ok=True)
    return [
        fork(
            folder / f'rank{rank}', _as_rank, rank, count, meeting, function, *arguments, **options
        )
        for rank in range(count)
    ]


def _as_rank(
    rank: int,
    count: int,
    meeting: Path,
    function: Callable[..., Any],
    *arguments: Any,
    **options: Any,
) -> Any:
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(count)}
    torch.distributed.init_process_group(
        'gloo',
        init_method=f'file://{meeting}',
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )
    result = function(*arguments, **options)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    return result


def warm(folder: Path) -> None:
    """Train a little here, so that children need not pay for what is slow the first time."""
    tiny_runner(folder, steps=STEPS_PER_EPOCH).train()
