"""Drawing predictions with the toolboxes' visualizers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmengine.visualization import Visualizer
from numpy.typing import NDArray

from .media import Image, in_color

if TYPE_CHECKING:
    from mmengine.config import Config

    from .results import Detections, Segmentation


@dataclass(frozen=True)
class Artist:
    """Draws predictions as a config's visualizer does.

    Attributes:
        visualizer: Its class.
        arguments: Its constructor's.
        classes: Names, in the order of the labels.
        palette: Their colours, RGB.
    """

    visualizer: type[Visualizer]
    arguments: Mapping[str, Any]
    classes: Sequence[str]
    palette: Sequence[tuple[int, ...]]

    @classmethod
    def of(cls, cfg: Config, classes: Sequence[str], palette: Sequence[tuple[int, ...]]) -> Artist:
        """Return that of a config."""
        with VISUALIZERS.switch_scope_and_registry(cfg.default_scope) as visualizers:
            visualizer = visualizers.get(cfg.visualizer.type)
        # A backend would log the pictures, and make folders for that.
        other = ('type', '_scope_', 'vis_backends')
        arguments = {k: v for k, v in cfg.visualizer.items() if k not in other}
        return cls(visualizer, arguments, classes, palette)

    def draw_detections(self, found: Detections) -> Image:
        """Draw boxes, and masks where there are some; (H, W, 3), uint8, BGR."""
        from mmdet.structures import DetDataSample

        instances = InstanceData(
            bboxes=torch.from_numpy(found.boxes),
            scores=torch.from_numpy(found.scores),
            labels=torch.from_numpy(found.labels),
        )
        if found.masks is not None:
            instances.masks = torch.from_numpy(np.asarray(found.masks))
        return self._draw(found.image, DetDataSample(pred_instances=instances), pred_score_thr=-1.0)

    def draw_labels(self, found: Segmentation) -> Image:
        """Draw a label map over its image; (H, W, 3), uint8, BGR."""
        from mmseg.structures import SegDataSample

        # As numpy: mmseg's visualizer fails on a tensor of one pixel.
        labels = PixelData(data=found.labels[None].astype(np.int64))
        return self._draw(found.image, SegDataSample(pred_sem_seg=labels))

    def _draw(self, image: NDArray[Any], sample: Any, **arguments: Any) -> Image:
        visualizer = self.visualizer(**self.arguments)
        visualizer.dataset_meta = dict(classes=list(self.classes), palette=list(self.palette))
        rgb = np.ascontiguousarray(in_color(image)[..., ::-1])
        visualizer.add_datasample('prediction', rgb, sample, draw_gt=False, **arguments)
        return np.ascontiguousarray(visualizer.get_image()[..., ::-1])
