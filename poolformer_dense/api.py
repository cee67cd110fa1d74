"""What `poolformer_dense` offers to Python; the tools call the same functions."""

from __future__ import annotations

import copy
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

from mmengine.config import Config
from mmengine.registry import DefaultScope

from .config.load import load_config
from .config.overrides import apply_overrides
from .predict.predictor import Predictor, load_predictor
from .shipped import find_config

# A config by its path, by the name of a shipped one, or as `config.load.load_config` returns it.
ConfigLike: TypeAlias = 'str | os.PathLike[str] | Config'

_loading = threading.Lock()


def load(
    config: ConfigLike,
    checkpoint: str | os.PathLike[str],
    device: str | None = None,
    *,
    overrides: Mapping[str, Any] | None = None,
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


def as_config(config: ConfigLike, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config, or copy one that has been read, and merge overrides into it."""
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
        apply_overrides(cfg, dict(overrides or {}))
        return cfg
    return load_config(find_config(os.fspath(config)), dict(overrides or {}))


@contextmanager
def scope_kept() -> Iterator[None]:
    """Put mmengine's default scope back at the end of the block."""
    current = DefaultScope.get_current_instance()
    with DefaultScope.overwrite_default_scope(current.scope_name if current else 'mmengine'):
        yield
