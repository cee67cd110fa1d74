"""Weights for others: one file that tells what it is, and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from mmengine.config import Config

from backbones.checkpoints.digest import digest
from backbones.version import __version__

from ..errors import UserError
from ..predict.building import load_predictor
from ..predict.results import write_whole

_FILE = 'model.safetensors'


def publish(
    cfg: Config, checkpoint: str, folder: Path, license: str, unsafe_load: bool = False
) -> dict[str, Any]:
    """Write a checkpoint's weights as ``model.safetensors`` beside ``config.py`` and a model card.

    The file's header has the names of the classes, the config, the metrics of the run and the
    SHA-256 of the weights, which is checked when they are read.

    Args:
        cfg: The config; the checkpoint must fit it entirely.
        checkpoint: A file of a run. The metrics are those of the last evaluation in its work
            directory.
        folder: Where the files go.
        license: Of the weights, as the hub names it, such as ``apache-2.0``.
        unsafe_load: Run the code that the checkpoint holds.

    Returns:
        What the header has.

    Raises:
        UserError: The folder has such files.
        CheckpointError: The checkpoint can't be read or does not fit.
    """
    if (folder / _FILE).exists():
        raise UserError(f'{folder / _FILE} exists; delete it or give another folder')
    predictor = load_predictor(cfg, checkpoint, 'cpu', unsafe_load=unsafe_load)
    tensors = {k: v.contiguous() for k, v in predictor.model.state_dict().items()}
    header = dict(
        classes=predictor.classes,
        config=cfg.pretty_text,
        metrics=last_metrics(Path(checkpoint).parent),
        sha256=digest(tensors),
        producer=f'poolformer-dense {__version__}',
    )
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in header.items()}
    write_whole(folder / _FILE, safetensors.torch.save(tensors, {'format': 'pt', **texts}))
    write_whole(folder / 'config.py', cfg.pretty_text.encode())
    write_whole(folder / 'README.md', model_card(cfg, header, license, len(tensors)).encode())
    return header


def last_metrics(folder: Path) -> dict[str, float]:
    """Return what the last evaluation of a run measured, nothing if there was none."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        for line in path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # a line that was cut off
                continue
            measured = {k.split('/')[-1]: v for k, v in entry.items()}
            if {'bbox_mAP', 'mIoU', 'mAP'} & measured.keys():
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
    name = (
        f'{cfg.model.type} {cfg.model.backbone.type} {cfg.model.backbone.get("arch", "")}'.strip()
    )
    data = cfg.test_dataloader.dataset
    metrics = ''.join(
        f'      - type: {key}\n        value: {value}\n' for key, value in header['metrics'].items()
    )
    results = (
        (
            'model-index:\n'
            f'- name: {name}\n  results:\n'
            f'  - task:\n      type: {task}\n'
            f'    dataset:\n      name: {data.type}\n      type: {data.type}\n'
            f'    metrics:\n{metrics}'
        )
        .replace('      - type', '    - type')
        .replace('        value', '      value')
    )
    table = '\n'.join(f'| {key} | {value} |' for key, value in header['metrics'].items())
    return f"""---
license: {license}
library_name: poolformer-dense
pipeline_tag: {task}
tags:
- {'mmdet' if detects else 'mmseg'}
- {cfg.model.backbone.type.lower()}
{results if metrics else ''}---

# {name}

{len(header['classes'])} classes: {', '.join(header['classes'])}.

```python
import poolformer_dense

model = poolformer_dense.load('config.py', '{_FILE}')
for result in model.predict('image.jpg'):
    print(result)
```

`config.py` is a program: read it before you use it. `{_FILE}` has {tensors} tensors; their SHA-256,
`{header['sha256']}`, is checked when they are loaded.

| measured by the run | |
|---|---|
{table or '| nothing | |'}

Made by {header['producer']}.
"""
