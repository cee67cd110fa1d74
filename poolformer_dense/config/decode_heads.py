"""The segmentation heads of a config: classes, channels, losses, and the label each leaves out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS

from .walk import entries_of, evaluators_of, type_name, walk

# mmseg's, wherever nothing else is said.
UNLABELLED = 255


@dataclass(frozen=True)
class DecodeHead:
    """A head that mmseg's ``BaseDecodeHead`` is the base of.

    Attributes:
        place: Where it stands in the config.
        node: Its config.
        kind: Its class.
        plain: Whether its losses are called as the base class does.
    """

    place: str
    node: Mapping[str, Any]
    kind: type
    plain: bool

    @property
    def num_classes(self) -> int:
        """The classes that its labels number."""
        return int(self.node['num_classes'])

    @property
    def channels(self) -> int:
        """The channels of its output."""
        channels = self.node.get('out_channels')
        return self.num_classes if channels is None else int(channels)

    @property
    def ignore_index(self) -> int | None:
        """The label that its losses leave out."""
        label: int | None = argument(self.kind, self.node, 'ignore_index')
        return label

    @property
    def losses(self) -> list[tuple[str, Mapping[str, Any]]]:
        """The places and the configs of its losses."""
        given = argument(self.kind, self.node, 'loss_decode')
        return entries_of(given, f'{self.place}.loss_decode')


def decode_heads(cfg: Config) -> list[DecodeHead]:
    """Return the heads that say how many classes they have, the main one first.

    Heads that stand inside other heads are included.

    Args:
        cfg: The config; its toolbox must be importable.
    """
    if cfg.get('default_scope') != 'mmseg':
        return []
    from mmseg.models.decode_heads.decode_head import BaseDecodeHead

    heads = []
    for place, node in walk(cfg.get('model'), 'model'):
        if not isinstance(node, Mapping) or not isinstance(node.get('num_classes'), int):
            continue
        kind = class_of(cfg, node)
        if inspect.isclass(kind) and issubclass(kind, BaseDecodeHead):
            plain = getattr(kind, 'loss_by_feat', None) is BaseDecodeHead.loss_by_feat
            heads.append(DecodeHead(place, node, kind, plain))
    return sorted(heads, key=lambda head: not head.place.startswith('model.decode_head'))


def class_of(cfg: Config, node: Mapping[str, Any]) -> Any:
    """Return what a part of the model is built of, None if the registries don't know it."""
    kind = node.get('type')
    if not isinstance(kind, str):
        return kind
    with MODELS.switch_scope_and_registry(cfg.default_scope) as registry:
        return registry.get(kind)


def argument(kind: type, node: Mapping[str, Any], name: str, missing: Any = None) -> Any:
    """Return what a class is given for an argument: by its config, or by default."""
    if name in node:
        return node[name]
    for owner in kind.__mro__[:-1]:
        parameters = inspect.signature(owner).parameters
        if name in parameters:
            return parameters[name].default
    return missing


def label_metrics(cfg: Config, split: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the config of each metric that compares label maps."""
    for place, node in evaluators_of(cfg, split):
        if type_name(node) == 'IoUMetric' and not node.get('format_only'):
            yield place, node


def ignored_labels(cfg: Config, splits: Sequence[str]) -> set[int | None]:
    """Return the labels that do not count in any of the splits: for losses, or for metrics."""
    heads = decode_heads(cfg)
    counted = []
    for split in splits:
        readers = {
            metric.get('ignore_index', UNLABELLED) for _, metric in label_metrics(cfg, split)
        }
        if split == 'train' or not readers:
            readers = {head.ignore_index for head in heads[:1]} or {UNLABELLED}
        counted.append(readers)
    return {label for readers in counted for label in readers if all(label in r for r in counted)}
