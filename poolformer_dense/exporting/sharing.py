"""Weights for others: one file that tells what it is, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import yaml
from mmengine.config import Config

from backbones.checkpoints.digest import digest
from backbones.version import __version__

from ..errors import UserError
from ..predict.building import load_predictor
from ..predict.results import write_whole
from ..runtimes.runtime import is_exported

_WEIGHTS, _CONFIG, _CARD = 'model.safetensors', 'config.py', 'README.md'


def publish(
    cfg: Config, checkpoint: str, folder: Path, license: str, unsafe_load: bool = False
) -> dict[str, Any]:
    """Write a checkpoint's weights as ``model.safetensors`` beside ``config.py`` and a model card.

    The file's header has the names of the classes, the config, the metrics of the run and the
    SHA-256 of the weights, which is checked when they are read.

    Args:
        cfg: The config; the checkpoint must fit it entirely.
        checkpoint: A file of a run. The metrics are those that its work directory has of it.
        folder: Where the files go.
        license: Of the weights, as the hub names it, such as ``apache-2.0``.
        unsafe_load: Run the code that the checkpoint holds.

    Returns:
        What the header has.

    Raises:
        UserError: The folder has such files, or the checkpoint is an exported file.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    for name in (_WEIGHTS, _CONFIG, _CARD):
        if (folder / name).exists():
            raise UserError(f'{folder / name} exists; delete it or give another folder')
    if is_exported(checkpoint):
        raise UserError(f'{checkpoint} is an exported file: publish the checkpoint that it is of')
    predictor = load_predictor(cfg, checkpoint, 'cpu', unsafe_load=unsafe_load)
    # Copies: the file can't have one tensor under two names.
    tensors = {k: v.clone() for k, v in predictor.model.state_dict().items()}
    header = dict(
        classes=predictor.classes,
        config=cfg.pretty_text,
        metrics=metrics_at(_steps(cfg, predictor.meta), Path(checkpoint).parent),
        sha256=digest(tensors),
        producer=f'poolformer-dense {__version__}',
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    card = model_card(cfg, header, license, len(tensors))
    weights = safetensors.torch.save(tensors, {'format': 'pt', **texts})
    write_whole(folder / _CARD, card.encode())
    write_whole(folder / _CONFIG, cfg.pretty_text.encode())
    write_whole(folder / _WEIGHTS, weights)
    return header


def _steps(cfg: Config, meta: Mapping[str, Any]) -> set[int]:
    """After how many epochs or iterations a checkpoint was saved, as the log counts them."""
    if 'max_epochs' in (cfg.get('train_cfg') or {}):
        return {meta.get('epoch', 0)}
    done = meta.get('iter', 0)
    return {done, done - 1}  # mmengine's best ones count one more


def metrics_at(steps: set[int], folder: Path) -> dict[str, float]:
    """Return what a run measured after so many epochs or iterations, nothing if it did not."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that was cut off
                continue
            measured = {k.split('/')[-1]: v for k, v in entry.items()}
            if entry.get('step') in steps and {'bbox_mAP', 'mIoU', 'mAP'} & measured.keys():
                left_out = ('time', 'data_time', 'step', 'lr', 'loss', 'epoch', 'iter')
                found = {
                    k: round(float(v), 4)
                    for k, v in measured.items()
                    if k not in left_out and isinstance(v, (int, float))
                }
    return found


def model_card(cfg: Config, header: Mapping[str, Any], license: str, tensors: int) -> str:
    """Return a model card, Markdown with the metadata that the Hugging Face hub reads."""
    detects = cfg.default_scope == 'mmdet'
    task = 'object-detection' if detects else 'image-segmentation'
    if 'mask_head' in (cfg.model.get('roi_head') or {}):
        task = 'image-segmentation'
    arch = cfg.model.backbone.get('arch')
    backbone = [cfg.model.backbone.type, *([arch] if isinstance(arch, str) else [])]
    name = ' '.join([cfg.model.type, *backbone])
    front = dict(
        license=license,
        library_name='poolformer-dense',
        pipeline_tag=task,
        tags=['mmdet' if detects else 'mmseg', cfg.model.backbone.type.lower()],
    )
    if metrics := [dict(type=key, value=value) for key, value in header['metrics'].items()]:
        data = cfg.test_dataloader.dataset.type
        result = dict(task=dict(type=task), dataset=dict(name=data, type=data), metrics=metrics)
        front['model-index'] = [dict(name=name, results=[result])]
    table = '\n'.join(f'| {key} | {value} |' for key, value in header['metrics'].items())
    return f"""---
{yaml.safe_dump(front, sort_keys=False)}---

# {name}

{len(header['classes'])} classes: {', '.join(header['classes'])}.

```python
import poolformer_dense

model = poolformer_dense.load('config.py', '{_WEIGHTS}')
for result in model.predict('image.jpg'):
    print(result)
```

`config.py` is a program: read it before you use it. `{_WEIGHTS}` has {tensors} tensors; their
SHA-256, `{header['sha256']}`, is checked when they are loaded.

| measured by the run | |
|---|---|
{table or '| nothing | |'}

Made by {header['producer']}.
"""
