"""From a config file and a command line to a checked config."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.logging import MMLogger, print_log
from mmengine.registry import init_default_scope
from mmengine.utils import import_modules_from_strings

from backbones.checkpoints import localise

from ..console import adopt_logger
from ..errors import UserError
from .config_file import read_config
from .misspelled import check_spelling
from .moved import modernize
from .overrides import apply_overrides
from .registered import default_scope, name_types
from .store_paths import refuse_stores
from .walk import datasets_of, entries_of, nodes_of_type


def load_config(
    path: str,
    overrides: dict[str, Any] | None = None,
    work_dir: str | None = None,
    launcher: str = 'none',
    prepare: Sequence[Callable[[Config], None]] = (),
) -> Config:
    """Read a config, import what it names, and merge the command line into it.

    A config in a working directory of an earlier version is loaded too, with a warning.

    Args:
        path: The config file.
        overrides: ``--cfg-options``, dotted keys and values.
        work_dir: Where logs and checkpoints go; ``work_dirs/<config name>`` if not given here nor
            in the config.
        launcher: none, pytorch, slurm or mpi.
        prepare: Changes to make before the overrides, which may then refer to them.

    Raises:
        UserError: There is no such config, it can't be read, what it imports is not there, a name
            in it is misspelled, a path in it is in an object store, or an override is wrong.
    """
    adopt_logger(MMLogger.get_current_instance())
    cfg = read_config(path)
    if changes := modernize(cfg):
        message = f'{path} is of an earlier version: {", ".join(changes)}'
        print_log(message, 'current', logging.WARNING)
    try:
        import_modules_from_strings(**(cfg.get('custom_imports') or {'imports': []}))
    except (ImportError, TypeError) as error:
        raise UserError(f'config {path}: custom_imports: {error}') from error
    scope = default_scope(cfg)
    if scope is None:
        raise UserError(f'config {path} has no default_scope (mmdet or mmseg): is it only a base?')
    if scope in ('mmdet', 'mmseg'):
        importlib.import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    init_default_scope(scope)
    name_types(cfg)
    check_spelling(cfg)
    for change in prepare:
        change(cfg)
    apply_overrides(cfg, overrides or {})
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get('work_dir') or os.path.join('work_dirs', Path(path).stem)
    refuse_stores(cfg)
    return cfg


def enable_amp(cfg: Config) -> None:
    """Train in mixed precision: on a GPU with dynamic loss scaling, on a CPU in bfloat16."""
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def enable_amp_in_test(cfg: Config) -> None:
    """Test under autocast: to float16 on a GPU, to bfloat16 on a CPU."""
    cfg.setdefault('test_cfg', {})
    cfg.test_cfg.fp16 = True


def enable_compile(cfg: Config) -> None:
    """Compile the model; options that the config has for that are kept."""
    cfg.compile = cfg.get('compile') or True


def enable_lr_scaling(cfg: Config) -> None:
    """Scale the learning rate linearly from ``auto_scale_lr.base_batch_size``."""
    if 'base_batch_size' not in cfg.get('auto_scale_lr', {}):
        raise UserError('--auto-scale-lr: the config has no auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True


def use_mirror(cfg: Config, mirror: str | None) -> None:
    """Take released weights from a folder or URL that has them instead of from the network.

    Raises:
        CheckpointError: The mirror is a folder and lacks a file that the config names.
    """
    for _, init_cfg in nodes_of_type(cfg.model, 'Pretrained'):
        init_cfg['checkpoint'] = localise(init_cfg['checkpoint'], mirror)
    if cfg.get('load_from'):
        cfg.load_from = localise(cfg.load_from, mirror)


def dump_predictions(cfg: Config, out: str) -> None:
    """Make the test write its predictions: a pickle of detections, or a folder of label maps.

    Raises:
        UserError: Detections would go to a file that is no pickle.
    """
    if cfg.default_scope == 'mmseg':
        roots = [
            os.path.join(node.get('data_root') or '', (node.get('data_prefix') or {})['img_path'])
            for _, node in datasets_of(cfg, 'test')
            if (node.get('data_prefix') or {}).get('img_path')
        ]
        writer = dict(type='DumpLabelMaps', folder=os.path.abspath(out), roots=roots)
    elif Path(out).suffix in ('.pkl', '.pickle'):
        writer = dict(type='DumpDetResults', out_file_path=out)
    else:
        raise UserError(f'--out {out}: detections go to a .pkl file')
    evaluator = cfg.get('test_evaluator')
    if isinstance(evaluator, MutableMapping) and 'metrics' in evaluator:
        evaluator['metrics'] = [*(m for _, m in entries_of(evaluator['metrics'])), writer]
    else:
        cfg.test_evaluator = [*(metric for _, metric in entries_of(evaluator)), writer]


def draw_predictions(cfg: Config, folder: str) -> None:
    """Make the test draw every image, ground truth beside prediction."""
    # mmdet's hook would join a relative folder to the working directory again at each image.
    folder = os.path.abspath(folder)
    cfg.default_hooks.visualization.draw = True
    if cfg.default_scope == 'mmseg':
        cfg.visualizer.save_dir = folder
        cfg.default_hooks.visualization.interval = 1
    else:
        cfg.default_hooks.visualization.test_out_dir = folder
