"""A data set that a config names, and what the config says about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.dataset import BaseDataset

from .faults import Fault


@dataclass(eq=False)
class Source:
    """A data set that one or several loaders of a config read.

    Attributes:
        dataset: The data set, built but not loaded: its paths are joined, its classes resolved.
        places: Where it stands in the config, e.g. val_dataloader.dataset.
        transforms: Each transform of its pipelines, with the place of its data set.
        evaluated: Whether it is used for evaluation.
        masks: Whether instance masks are trained or evaluated.
        evaluators: Where the config names the evaluators that read the same annotation file.
        ignored_labels: Labels that the model's losses ignore.
        local: Whether its files are on this machine.
        faults: What is wrong with the config itself.
    """

    dataset: BaseDataset
    places: list[str] = field(default_factory=list)
    transforms: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    evaluated: bool = False
    masks: bool = False
    evaluators: list[str] = field(default_factory=list)
    ignored_labels: set[int] = field(default_factory=set)
    local: bool = True
    faults: list[Fault] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """The classes that the config declares, or else those of the data set's type."""
        return list(self.dataset.metainfo.get('classes') or ())

    def option(self, key: str, transform: str) -> Any:
        """Return an argument that the pipelines give to a transform, or None."""
        given = (t.get(key) for _, t in self.transforms if t.get('type') == transform)
        return next((value for value in given if value is not None), None)

    def turns_images(self) -> bool:
        """Whether images are turned as their EXIF orientation says, which OpenCV does."""
        color_type = self.option('color_type', 'LoadImageFromFile') or 'color'
        return color_type != 'unchanged' and not color_type.endswith('ignore_orientation')
