"""A config and a checkpoint, or an exported file, become a predictor."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DATASETS, MODELS

from backbones import MetaFormer
from backbones.checkpoints import load_weights, read_checkpoint

from ..config.augmentation import tta_fault, tta_model, tta_pipeline
from ..config.datasets import check_names, check_num_classes, checkpoint_classes
from ..config.preflight.compiler import compiler_fault
from ..errors import UserError
from ..runner.compiling import compile_parts
from ..runner.memory_layout import keep_layout
from ..runner.mixed_precision import keep_edges_in_float32
from ..runtimes.exported import ExportedModel, check_task
from ..runtimes.runtime import is_exported
from .drawing import Artist
from .network import TorchNetwork, steps_in_memory
from .predictor import Predictor

DTYPES = ('float32', 'bfloat16', 'float16')


def load_predictor(
    cfg: Config,
    checkpoint: str,
    device: str | None = None,
    fuse: bool = False,
    unsafe_load: bool = False,
    dtype: str = 'float32',
    compiled: bool = False,
) -> Predictor:
    """Build the model of a config and load a checkpoint into it, strictly.

    Args:
        cfg: The config, as `config.load.load_config` returns it; it is not changed.
        checkpoint: A file, URL or name, read by `backbones.checkpoints`; or an exported file.
        device: As torch names it; a GPU if there is one.
        fuse: Fold the backbone's norms and layer scales into its weights.
        unsafe_load: Run the code that the checkpoint holds.
        dtype: float32, or for autocast bfloat16, on a GPU also float16.
        compiled: Whether by ``torch.compile``; the first images then take longer.

    Raises:
        UserError: The device is not there, or lacks the dtype or a compiler; the config is for
            neither toolbox or does not load images, its classes disagree with its heads, or the
            backbone can't be folded.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    if is_exported(checkpoint):
        return _load_exported(cfg, checkpoint, device, fuse or compiled, unsafe_load, dtype)
    device = check_device(device)
    if dtype not in DTYPES:
        raise UserError(f'dtype {dtype!r}: it is one of {", ".join(DTYPES)}')
    if dtype == 'float16' and torch.device(device).type == 'cpu':
        raise UserError('dtype float16: on a CPU it is bfloat16 or float32')
    if compiled and (fault := compiler_fault(device)):
        raise UserError(fault)
    cfg = copy.deepcopy(cfg)
    _check_scope(cfg)
    saved = read_checkpoint(checkpoint, 'cpu', unsafe_load)
    steps, decoder = steps_in_memory(cfg.test_dataloader.dataset.pipeline)
    with MODELS.switch_scope_and_registry(cfg.default_scope):
        model = keep_layout(MODELS.build(cfg.model))
        pipeline = Compose(steps)
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    load_weights(model, saved, source=checkpoint)
    model.to(device).eval().requires_grad_(False)
    if fuse:
        fold(model)
    if dtype != 'float32':
        keep_edges_in_float32(model)
    if compiled:
        compile_parts(model)
    classes = _classes(cfg, dataset.metainfo, saved)
    palette = _palette(len(classes), dataset.metainfo, saved)
    network = TorchNetwork(model, pipeline, getattr(torch, dtype))
    return Predictor(
        network,
        classes,
        cfg.default_scope == 'mmdet',
        decoder,
        Artist.of(cfg, classes, palette),
        cfg,
        _augmented(network, cfg),
        saved.get('meta') or {},
    )


def _load_exported(
    cfg: Config, file: str, device: str | None, changed: bool, unsafe_load: bool, dtype: str
) -> Predictor:
    """`load_predictor` of an exported file; it brings its classes with it."""
    if changed or dtype != 'float32' or (device or 'cpu') != 'cpu':
        raise UserError(
            f'{file} is an exported file: it is run as it is, on the CPU; give fuse and dtype to '
            'tools/export.py'
        )
    cfg = copy.deepcopy(cfg)
    _check_scope(cfg)
    steps, decoder = steps_in_memory(cfg.test_dataloader.dataset.pipeline)
    model = ExportedModel(file, unsafe_load).eval()
    check_task(model, file, cfg)
    with DATASETS.switch_scope_and_registry(cfg.default_scope) as datasets:
        pipeline = Compose(steps)
        dataset = datasets.build(dict(cfg.test_dataloader.dataset, lazy_init=True, pipeline=[]))
    classes = list(model.runtime.description['classes'])
    artist = Artist.of(cfg, classes, _palette(len(classes), dataset.metainfo, {}))
    detects = not model.segments
    return Predictor(TorchNetwork(model, pipeline), classes, detects, decoder, artist, cfg)


def _check_scope(cfg: Config) -> None:
    if cfg.default_scope not in ('mmdet', 'mmseg'):
        raise UserError(f'default_scope={cfg.default_scope!r}: inference is for mmdet and mmseg')


def _augmented(network: TorchNetwork, cfg: Config) -> TorchNetwork | None:
    """Return a network that predicts with test-time augmentation by the same model."""
    if tta_fault(cfg):
        return None
    steps, _ = steps_in_memory(tta_pipeline(cfg, cfg.test_dataloader.dataset.pipeline))
    with MODELS.switch_scope_and_registry(cfg.default_scope) as models:
        model = models.build({**tta_model(cfg), 'module': network.model})
        return replace(network, model=model, pipeline=Compose(steps))


def fold(model: Any) -> None:
    """Fold a detector's backbone for inference, in place.

    Raises:
        UserError: It is not one of ours.
    """
    backbone = model.backbone
    if not isinstance(backbone, MetaFormer):
        raise UserError(f'--fuse: the backbone {type(backbone).__name__} can not be folded')
    backbone.fuse()


def check_device(name: str | None) -> str:
    """Return a device's name, the GPU's or else the CPU's if none is given.

    Raises:
        UserError: There is no such device.
    """
    if name is None:
        return 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f'--device {name}: torch can not use it here ({reason})') from error
    return name


def _classes(cfg: Config, declared: Mapping[str, Any], checkpoint: Mapping[str, Any]) -> list[str]:
    """The classes that the checkpoint was trained on, or else the config's."""
    classes = checkpoint_classes(checkpoint)
    source = 'the checkpoint' if classes else 'test_dataloader.dataset'
    if not classes:
        check_names(declared.get('classes'), f'{source}.metainfo.classes')
        classes = list(declared.get('classes') or [])
    check_num_classes(cfg.model, len(classes), source)
    return classes


def _palette(
    count: int, declared: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> Sequence[tuple[int, ...]]:
    """The colours of as many classes: the config's, the checkpoint's, or drawn ones."""
    saved = (checkpoint.get('meta') or {}).get('dataset_meta') or {}
    palette = declared.get('palette') or saved.get('palette')
    if not isinstance(palette, (list, tuple)) or len(palette) < count:
        palette = np.random.default_rng(0).integers(0, 256, (count, 3)).tolist()
    return [tuple(colour) for colour in palette[:count]]
