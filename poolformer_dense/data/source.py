"""A data set that a config names, and what the config says about it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.dataset import BaseDataset

from .decoding import Decoder
from .faults import Fault


@dataclass(eq=False)
class Source:
    """A data set that one or several loaders of a config read.

    Attributes:
        dataset: The data set, built but not loaded: its paths are joined, its classes resolved.
        places: Where it stands in the config, e.g. val_dataloader.dataset.
        members: For each of the places its own data set, as `dataset` is, and its config: filters
            and ``indices`` may differ.
        transforms: Each transform of its pipelines, with the place of its data set.
        evaluated: Whether it is used for evaluation.
        masks: Whether instance masks are trained or evaluated.
        evaluators: Where the config names the evaluators that read the same annotation file.
        ignored_labels: Labels that count neither in the losses nor in the metrics that read it.
        local: Whether its files are on this machine.
        faults: What is wrong with the config itself.
    """

    dataset: BaseDataset
    places: list[str] = field(default_factory=list)
    members: list[tuple[BaseDataset, Mapping[str, Any]]] = field(default_factory=list)
    transforms: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    evaluated: bool = False
    masks: bool = False
    evaluators: list[str] = field(default_factory=list)
    ignored_labels: set[int | None] = field(default_factory=set)
    local: bool = True
    faults: list[Fault] = field(default_factory=list)

    @property
    def classes(self) -> list[str]:
        """The classes that the config declares, or else those of the data set's type."""
        return list(self.dataset.metainfo.get('classes') or ())

    def steps(self, transform: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield each transform of this name, which may have a scope, or be a class's."""
        for place, step in self.transforms:
            kind = step.get('type')
            if str(getattr(kind, '__name__', kind)).rpartition('.')[2] == transform:
                yield place, step

    def option(self, key: str, transform: str) -> Any:
        """Return an argument that the pipelines give to a transform, or None."""
        given = (step.get(key) for _, step in self.steps(transform))
        return next((value for value in given if value is not None), None)

    @property
    def decoder(self) -> Decoder:
        """How the pipelines decode images."""
        keys = ('color_type', 'imdecode_backend')
        return Decoder.of({key: self.option(key, 'LoadImageFromFile') for key in keys})
