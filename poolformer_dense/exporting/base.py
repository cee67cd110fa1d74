"""What all exports share: the image's preprocessing, and anchors up to boxes.

Every graph takes ``image``, (B, 3, H, W) uint8, RGB, already resized; the channel order, mean,
standard deviation and padding that the model was trained with are inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

# Boxes (B, K, 4), scores (B, K), and what they compete within (B, K): labels or levels.
Boxes = tuple[Tensor, Tensor, Tensor]
# `poolformer_dense.exporting.nms.nms_by_group`, or the same in operators of torch.
Suppress = Callable[[Tensor, Tensor, Tensor, float, int], Boxes]


class Graph(nn.Module):
    """A model with its preprocessing, from the image to named outputs.

    Args:
        model: A detector or segmentor of mmdet or mmseg, which is copied.
        preprocessing: The config of its data preprocessor.

    Attributes:
        outputs: The names of the results, the first that `forward` returns; the others are the
            model's raw outputs.
    """

    model: Any
    mean: Tensor | None
    std: Tensor | None
    outputs: tuple[str, ...]

    def __init__(self, model: Any, preprocessing: Mapping[str, Any]) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.trained_on_rgb = any(preprocessing.get(k) for k in ('bgr_to_rgb', 'rgb_to_bgr'))
        self.divisor = preprocessing.get('pad_size_divisor', 1)
        self.pad_value = preprocessing.get('pad_value', 0)
        for name in ('mean', 'std'):
            values = preprocessing.get(name)
            self.register_buffer(name, None if values is None else torch.tensor(values))

    def prepare(self, image: Tensor) -> Tensor:
        """Normalise, and pad on the right and at the bottom, as the model's preprocessor does."""
        x = image.float() if self.trained_on_rgb else image.float().flip(1)
        if self.mean is not None and self.std is not None:
            x = (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)
        if self.divisor == 1:
            return x
        height, width = x.shape[-2:]
        bottom = (height + self.divisor - 1) // self.divisor * self.divisor - height
        right = (width + self.divisor - 1) // self.divisor * self.divisor - width
        return F.pad(x, (0, right, 0, bottom), value=self.pad_value)


def boxes_before_nms(
    head: Any,
    maps: tuple[Sequence[Tensor], Sequence[Tensor]],
    size: Sequence[int],
    settings: Mapping[str, Any],
    by_level: bool,
) -> Boxes:
    """Return the boxes that go into NMS, of all levels.

    mmdet's `predict_by_feat` as tensor operations of fixed shape and for a batch: where it drops
    what is at or below ``score_thr`` or not larger than ``min_bbox_size``, the score becomes 0.

    Args:
        head: mmdet's head with anchors; its priors and its box coder are used.
        maps: The head's logits, (B, anchors * classes, h, w) by level, and its deltas,
            (B, anchors * 4, h, w) by level.
        size: Height and width that boxes are clipped to, in pixels.
        settings: mmdet's, for the head's test.
        by_level: Whether boxes compete within their level, as proposals do, or within their class.

    Returns:
        Boxes (B, K, 4), scores (B, K), and labels or levels (B, K); of each level at most
        ``nms_pre``, by falling score.
    """
    found = []
    classes = head.cls_out_channels
    for level, (logit, delta) in enumerate(zip(*maps, strict=True)):
        priors = head.prior_generator.single_level_grid_priors(
            logit.shape[-2:], level, logit.dtype, logit.device
        )
        scores = logit.permute(0, 2, 3, 1).flatten(1).sigmoid()
        scores, index = scores.topk(torch.sym_min(settings['nms_pre'], scores.shape[1]))
        anchor = index // classes
        delta = delta.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3)
        delta = delta.gather(1, anchor.unsqueeze(-1).expand(-1, -1, 4))
        boxes = head.bbox_coder.decode(
            priors[anchor].flatten(0, 1), delta.flatten(0, 1), max_shape=size
        )
        groups = torch.full_like(index, level) if by_level else index % classes
        found.append((boxes.view_as(delta), scores, groups))
    boxes, scores, groups = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    sides = boxes[..., 2:] - boxes[..., :2]
    kept = scores > settings.get('score_thr', 0)
    kept = kept & (sides > settings.get('min_bbox_size', -1)).all(-1)
    return boxes, scores * kept, groups


def maps_by_level(logits: Sequence[Tensor], deltas: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return an anchor head's maps by their names among the raw outputs."""
    named = {f'logits_{level}': each for level, each in enumerate(logits)}
    return named | {f'deltas_{level}': each for level, each in enumerate(deltas)}


def check_nms(settings: Mapping[str, Any], place: str) -> None:
    """Refuse a kind of NMS that no graph has.

    Raises:
        UserError: It is one.
    """
    kind = settings['nms']
    unknown = set(kind) - {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}
    if kind.get('type', 'nms') != 'nms' or kind.get('class_agnostic') or unknown:
        raise UserError(f'{place}.nms: exports have no {dict(kind)}')


def check_limits(settings: Mapping[str, Any], place: str, *names: str) -> None:
    """Refuse a head's test that keeps any number of boxes.

    Raises:
        UserError: It does.
    """
    for name in names:
        if settings.get(name, -1) < 1:
            raise UserError(f'{place}.{name}: an export needs a limit, such as 1000')
