"""The page of results, made from the configs and the metafile, and what models cost."""

from __future__ import annotations

import ast
import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mmengine
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..config.load import load_config
from ..errors import UserError

METAFILE = 'configs/metafile.yml'
PAGE = 'docs/results.md'
# Height and width in pixels: COCO's 1333x800 padded to multiples of 32, and ADE20K's crop.
IMAGE = {'mmdet': (800, 1344), 'mmseg': (512, 512)}

INTRODUCTION = """\
# Results

Made by `tools/make_results.py` from the configs and
[`configs/metafile.yml`](../configs/metafile.yml): change those, not this page.

**Published** are numbers of others, each with its source; "none" where we know of none for the
recipe of the config. **Ours** is what this project has measured.

**Params** are all of the model that is trained, in millions. **GMACs** are billions of
multiply-accumulates of one image's inference (FLOPs, where a multiplication and an addition count
as two, are twice as many): those of convolutions, linear layers and matrix products, including both
products of attention; norms, activations, pooling, resizing and RoIAlign do not count. Detection is
counted at 1333x800 pixels, padded to 1344x800. Two-stage detectors are counted with the most boxes
that their configs let through: every box head with 1,000 proposals, every mask head with 100
detections. Segmentation is counted at 512x512 pixels, without the auxiliary head, which only
training uses.
"""


def load_metafile(root: Path) -> dict[str, Any]:
    """Read the metafile of a repository.

    Raises:
        UserError: There is none.
    """
    path = root / METAFILE
    if not path.is_file():
        raise UserError(f'{path} does not exist; it lists the models, see docs/design.md')
    return mmengine.load(path)


def write_metafile(root: Path, metafile: Mapping[str, Any]) -> None:
    """Write the metafile, under the comment that it begins with."""
    path = root / METAFILE
    lines = path.read_text().splitlines(keepends=True)
    comment = itertools.takewhile(lambda line: line.startswith('#'), lines)
    text = mmengine.dump(metafile, file_format='yaml', sort_keys=False, width=100)
    path.write_text(''.join(comment) + text)


def measure(config: Path) -> dict[str, int]:
    """Return a config's parameters and multiply-accumulates, counted as `INTRODUCTION` says.

    Nothing is computed: the model and its image are on the ``meta`` device.

    Args:
        config: Path of a detector's or segmentor's config.

    Returns:
        What a metafile has in ``Metadata``: ``Parameters``, and ``FLOPs``, which by the custom of
        these files are multiply-accumulates.
    """
    cfg = load_config(str(config))
    with torch.device('meta'):
        model = MODELS.build(cfg.model).eval()
        image = torch.empty(1, 3, *IMAGE[cfg.default_scope])
    # torch's counter doesn't know the fused kernel of attention, so its products are spelled out
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        _forward(model, image)
    parameters = sum(p.numel() for p in model.parameters())
    return {'Parameters': parameters, 'FLOPs': counter.get_total_flops() // 2}


def format_page(root: Path, metafile: Mapping[str, Any]) -> str:
    """Return the text of the page: a table for each collection of the metafile.

    Args:
        root: The repository, whose configs say the commands and our own numbers.
        metafile: As `load_metafile` returns it.

    Raises:
        UserError: A model has no figures, or its config does not say its command.
    """
    parts = [INTRODUCTION]
    for collection in metafile['Collections']:
        models = [m for m in metafile['Models'] if m['In Collection'] == collection['Name']]
        rows = [('backbone', 'params (M)', 'GMACs', 'published', 'ours', 'command')]
        rows.append(('---', '--:', '--:', '---', '---', '---'))
        rows += [_row(root, model) for model in models]
        lines = ('| ' + ' | '.join(row) + ' |' for row in rows)
        parts.append(f'## {collection["Name"]}\n\n{collection["Metadata"]["Recipe"]}\n')
        parts.append('\n'.join(lines) + '\n')
    return '\n'.join(parts)


def read_docstring(config: Path) -> dict[str, str]:
    """Return what a leaf config's docstring says: its ``command``, ``hardware`` and ``ours``.

    Raises:
        UserError: One of them is missing.
    """
    text = ast.get_docstring(ast.parse(config.read_text())) or ''
    found = {}
    for name in ('Command', 'Hardware', 'Ours'):
        match = re.search(rf'\b{name}: (.+?)\.?(?:$|(?<=\.) )', text, re.MULTILINE)
        if match is None:
            raise UserError(f'{config}: the docstring has no "{name}: ..."')
        found[name.lower()] = match[1]
    return found


def _row(root: Path, model: Mapping[str, Any]) -> tuple[str, ...]:
    metadata = model['Metadata']
    if not {'Parameters', 'FLOPs'} <= metadata.keys():
        raise UserError(
            f'{METAFILE}: {model["Name"]} has no Parameters and FLOPs; '
            'tools/make_results.py --measure writes them'
        )
    said = read_docstring(root / model['Config'])
    return (
        metadata['Architecture'][0],
        f'{metadata["Parameters"] / 1e6:.2f}',
        f'{metadata["FLOPs"] / 1e9:.1f}',
        _published(model.get('Results', [])),
        said['ours'],
        f'`{said["command"]}`',
    )


def _published(results: list[Mapping[str, Any]]) -> str:
    metrics = [f'{name} {value}' for result in results for name, value in result['Metrics'].items()]
    sources = dict.fromkeys(result['Source'] for result in results)  # each once, in order
    return f'{", ".join(metrics)} ({"; ".join(sources)})' if metrics else 'none'


def _forward(model: nn.Module, image: Tensor) -> None:
    """Run an inference's layers; boxes are replaced by as many as the config lets through."""
    if not hasattr(model, 'roi_head'):
        model(image, mode='tensor')
        return
    model.rpn_head(model.extract_feat(image))
    roi, limits = model.roi_head, model.test_cfg
    _run_heads(roi.bbox_head, roi.bbox_roi_extractor, limits.rpn.max_per_img)
    _run_heads(roi.mask_head, roi.mask_roi_extractor, limits.rcnn.max_per_img)


def _run_heads(heads: nn.Module, extractors: nn.Module, boxes: int) -> None:
    """Run one head, or those of a cascade, on as many regions as there are boxes."""
    if not isinstance(heads, nn.ModuleList):
        heads, extractors = [heads], [extractors]
    for head, extractor in zip(heads, extractors, strict=True):
        size = extractor.roi_layers[0].output_size
        head(torch.empty(boxes, extractor.out_channels, *size, device='meta'))
