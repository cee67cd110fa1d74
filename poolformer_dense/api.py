"""What `poolformer_dense` offers to Python; the commands call the same functions."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmengine.runner import Runner, find_latest_checkpoint

from backbones.checkpoints import MIRROR_VARIABLE

from .config.augmentation import enable_tta
from .config.load import (
    draw_predictions,
    dump_predictions,
    enable_amp,
    enable_amp_in_test,
    enable_compile,
    enable_lr_scaling,
    load_config,
    use_mirror,
)
from .config.overrides import apply_overrides
from .config.preflight import check_run
from .errors import UserError, first_process
from .measure.export_parity import Exported, export_compared
from .predict.building import load_predictor
from .predict.predictor import Predictor
from .runner import build_runner, run_process
from .runner.folder_lock import alone_in
from .runner.launch import join_run
from .runner.ranks import failing_together
from .runtimes.exported import evaluate_exported
from .runtimes.runtime import is_exported
from .shipped import find_config

# A config by its path, by the name of a shipped one, or as `config.load.load_config` returns it.
ConfigLike: TypeAlias = 'str | os.PathLike[str] | Config'
PathLike: TypeAlias = 'str | os.PathLike[str]'
# Dotted keys of a config and their values.
Overrides: TypeAlias = 'Mapping[str, Any] | None'

_loading = threading.Lock()


@dataclass(frozen=True)
class Training:
    """What a training leaves.

    Attributes:
        work_dir: Its folder of logs and checkpoints.
        checkpoint: Its last checkpoint, None if it saved none.
        metrics: Of the last validation, by name, such as ``coco/bbox_mAP`` (from 0 to 1) or
            ``mIoU`` (percent).
    """

    work_dir: Path
    checkpoint: Path | None
    metrics: dict[str, float]


def load(
    config: ConfigLike,
    checkpoint: PathLike,
    device: str | None = None,
    *,
    overrides: Overrides = None,
    fuse: bool = False,
    unsafe_load: bool = False,
    dtype: str = 'float32',
    compiled: bool = False,
) -> Predictor:
    """Load a model for predictions.

    What is loaded can be shared by threads. Nothing stays changed in the process.

    Args:
        config: The path of a config, or the name of a shipped one. It is a program: use only
            configs that you trust.
        checkpoint: A file, URL or name of released weights; it must fit entirely.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; a GPU if there is one.
        overrides: Dotted keys of the config and their values, as ``--cfg-options``.
        fuse: Fold the backbone's norms and layer scales into its weights.
        unsafe_load: Run the code that the checkpoint holds instead of refusing it.
        dtype: ``float32``, or for autocast ``bfloat16``, on a GPU also ``float16``.
        compiled: Compile backbone and neck by ``torch.compile``; the first images take longer.

    Raises:
        UserError: The config, an override, or the device is wrong, or classes and heads disagree.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    with _loading, scope_kept():
        cfg = as_config(config, overrides)
        return load_predictor(
            cfg, os.fspath(checkpoint), device, fuse, unsafe_load, dtype, compiled
        )


def train(
    config: ConfigLike,
    overrides: Overrides = None,
    /,
    *,
    work_dir: PathLike | None = None,
    resume: bool | PathLike = False,
    amp: bool = False,
    compiled: bool = False,
    auto_scale_lr: bool = False,
    launcher: str = 'none',
    unsafe_load: bool = False,
    **more: Any,
) -> Training:
    """Train a detector or a segmentor, with validations and checkpoints as the config says.

    While it trains in the main thread, SIGTERM and SIGUSR1 save a checkpoint and end the process
    with code 75, and Ctrl-C saves one and ends it with 130.

    Args:
        config: The path of a config, or the name of a shipped one. It is a program: use only
            configs that you trust.
        overrides: Dotted keys of the config and their values, as ``--cfg-options``:
            ``{'train_cfg.max_epochs': 3}``.
        work_dir: Where logs and checkpoints go; ``work_dirs/<config name>`` if the config does not
            say.
        resume: Resume from this checkpoint; True from the newest intact one in the work directory.
        amp: Mixed precision: on a GPU with dynamic loss scaling, on a CPU in bfloat16.
        compiled: Compile backbone and neck by ``torch.compile``; the first iterations take longer.
        auto_scale_lr: Scale the learning rate from the config's base batch to the batch in use.
        launcher: ``pytorch`` in a process of torchrun, ``slurm`` of srun, ``mpi`` of mpirun.
        unsafe_load: Run the code that checkpoints hold instead of refusing it.
        **more: More overrides, by keys without dots: ``train_cfg=dict(max_epochs=3)``.

    Raises:
        UserError: The config, an override, the data or the environment is wrong; it is told before
            the model is built where that can be known.
        CheckpointError: Weights or a checkpoint can't be read or do not fit.
    """
    prepare = [enable_amp] if amp else []
    prepare += [enable_lr_scaling] if auto_scale_lr else []
    prepare += [enable_compile] if compiled else []
    with ExitStack() as stack:
        stack.enter_context(run_process(unsafe_load, training=True))
        stack.enter_context(scope_kept())
        cfg = as_config(config, {**(overrides or {}), **more}, work_dir, launcher, prepare)
        if resume:
            cfg.resume = True
            cfg.load_from = None if resume is True else os.fspath(resume)
        use_mirror(cfg, os.environ.get(MIRROR_VARIABLE))
        join_run(cfg)
        with failing_together():
            if first_process():
                stack.enter_context(alone_in(cfg.work_dir))
            check_run(cfg, ['train', 'val'], unsafe_load)
        runner = build_runner(cfg, unsafe_load)
        runner.train()
    last = find_latest_checkpoint(runner.work_dir)
    return Training(Path(runner.work_dir), Path(last) if last else None, _validated(runner))


def evaluate(
    config: ConfigLike,
    checkpoint: PathLike,
    overrides: Overrides = None,
    /,
    *,
    work_dir: PathLike | None = None,
    out: PathLike | None = None,
    show_dir: PathLike | None = None,
    fuse: bool = False,
    amp: bool = False,
    compiled: bool = False,
    tta: bool = False,
    launcher: str = 'none',
    unsafe_load: bool = False,
    **more: Any,
) -> dict[str, float]:
    """Evaluate a checkpoint on the config's test data.

    Args:
        config: As in `train`.
        checkpoint: A file, URL or name of released weights, which must fit entirely; or a file that
            `export` wrote.
        overrides: As in `train`.
        work_dir: As in `train`.
        out: Where predictions go: a ``.pkl`` file of a detector, a folder of a segmentor.
        show_dir: A folder of pictures, ground truth beside prediction.
        fuse: Fold the backbone's norms and layer scales into its weights.
        amp: Autocast to float16 on a GPU, to bfloat16 on a CPU.
        compiled: As in `train`.
        tta: Test-time augmentation, as the config's ``tta_pipeline`` says.
        launcher: As in `train`.
        unsafe_load: Run the code that the checkpoint holds instead of refusing it.
        **more: As in `train`.

    Returns:
        The metrics by name, such as ``coco/bbox_mAP`` (from 0 to 1) or ``mIoU`` (percent).

    Raises:
        UserError: The config, an override, the data or the environment is wrong.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    prepare = [enable_amp_in_test] if amp else []
    prepare += [enable_compile] if compiled else []
    with scope_kept():
        cfg = as_config(config, {**(overrides or {}), **more}, work_dir, launcher, prepare)
        exported = is_exported(os.fspath(checkpoint))
        if exported and (fuse or tta or amp or compiled):
            raise UserError('--fuse, --tta, --amp and --compile: an exported file is run as it is')
        cfg.load_from = None if exported else os.fspath(checkpoint)
        if out:
            dump_predictions(cfg, os.fspath(out))
        if show_dir:
            draw_predictions(cfg, os.fspath(show_dir))
        if fuse:
            cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='FuseHook')]
        join_run(cfg)
        with failing_together():
            check_run(cfg, ['test'], unsafe_load)
        if tta:
            enable_tta(cfg)
        if exported:
            evaluate_exported(cfg, os.fspath(checkpoint), unsafe_load)
        return dict(build_runner(cfg, unsafe_load).test())


def export(
    config: ConfigLike,
    checkpoint: PathLike,
    path: PathLike,
    *,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    nms: bool = False,
    paste: bool = False,
    dtype: str = 'float32',
    fuse: bool = False,
    int8: str | None = None,
    calibration_images: int = 64,
    max_drop: float | None = None,
    images: Sequence[PathLike] = (),
    overrides: Overrides = None,
    unsafe_load: bool = False,
) -> Exported:
    """Write a model for ONNX, OpenVINO or torch.export, and compare the file with the model.

    Args:
        config: As in `load`.
        checkpoint: As in `load`.
        path: The file: ``.onnx``, ``.xml`` for OpenVINO, or ``.pt2`` for a program of torch.export.
        size: Height and width of the image; what the test pipeline makes of 480 x 640 if not given.
        dynamic: Take any batch, height and width.
        nms: Apply NMS in the graph, of a detector of one stage; others always do.
        paste: Masks of the size of the image, not of a grid over each box.
        dtype: Of stored weights: ``float32`` or ``bfloat16``.
        fuse: Fold the backbone's norms and layer scales first.
        int8: Compute in 8-bit integers, scaled by these images: ``train`` or ``val`` for the
            config's, or a folder (OpenVINO).
        calibration_images: How many of them.
        max_drop: Keep layers in float32 until AP or mIoU falls by no more points.
        images: Files to compare on; drawn scenes if there are none.
        overrides: As in `load`.
        unsafe_load: As in `load`.

    Raises:
        UserError: The config or an argument is wrong, or the model can't be exported so.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    predictor = load(config, checkpoint, 'cpu', overrides=overrides, unsafe_load=unsafe_load)
    with scope_kept():
        return export_compared(
            predictor,
            Path(path),
            size=size,
            dynamic=dynamic,
            nms=nms,
            paste=paste,
            dtype=dtype,
            fuse=fuse,
            int8=int8,
            calibration_count=calibration_images,
            max_drop=max_drop,
            images=[os.fspath(image) for image in images],
        )


def as_config(
    config: ConfigLike,
    overrides: Overrides = None,
    work_dir: PathLike | None = None,
    launcher: str = 'none',
    prepare: Sequence[Callable[[Config], None]] = (),
) -> Config:
    """Read a config, or copy one that has been read, and merge overrides into it.

    See `config.load.load_config` for the arguments.
    """
    folder = None if work_dir is None else os.fspath(work_dir)
    if not isinstance(config, Config):
        path = find_config(os.fspath(config))
        return load_config(path, dict(overrides or {}), folder, launcher, prepare)
    cfg = copy.deepcopy(config)
    for change in prepare:
        change(cfg)
    apply_overrides(cfg, dict(overrides or {}))
    cfg.launcher = launcher
    cfg.work_dir = folder or cfg.work_dir
    return cfg


@contextmanager
def scope_kept() -> Iterator[None]:
    """Put mmengine's default scope back at the end of the block."""
    current = DefaultScope.get_current_instance()
    with DefaultScope.overwrite_default_scope(current.scope_name if current else 'mmengine'):
        yield


def _validated(runner: Runner) -> dict[str, float]:
    logged = runner.message_hub.log_scalars.items()
    values = {name.removeprefix('val/'): log for name, log in logged if name.startswith('val/')}
    return {k: log.current() for k, log in values.items() if k not in ('time', 'data_time')}
