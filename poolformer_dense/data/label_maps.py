"""Semantic segmentation: image and label map in pairs, and what their pixels say."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.fileio import list_dir_or_file

from ..errors import UserError
from .decoding import Decoder, Inspected, Unreadable, inspect_image, read_image
from .faults import Fault, fault, first_names
from .images import missing_files, read_all
from .source import Source

# A quick check reads this many pairs, evenly spread.
SAMPLE = 16
# And so many more, if those make it suspect that a label stands for a class.
_SUSPECT = 128
# It is suspicious if at least so many label maps should use a class and none does.
_ENOUGH = 5


class LabelMaps:
    """The pairs of one data set, and how its labels are read.

    Attributes:
        path: The folder of the label maps.
        contents: What it holds, in words.
        pairs: Paths of images and label maps (None where the data set has none).
        num_labels: Classes that the label maps number, before metainfo omits some.
        reduce: ``reduce_zero_label``: label 0 becomes ignored, the others go down by one.
        used: For each label, in how many of the maps it was found.
    """

    def __init__(self, source: Source) -> None:
        dataset = source.dataset
        self.source = source
        self.path = str(dataset.data_prefix.get('seg_map_path') or '')
        self.pairs = [(p['img_path'], p.get('seg_map_path')) for p in dataset.load_data_list()]
        self.contents = f'{len(self.pairs)} images'
        own = dataset.METAINFO.get('classes') if dataset.label_map else None
        self.num_labels = len(own or dataset.metainfo.get('classes') or ())
        self.reduce = dataset.reduce_zero_label
        self.ignored = source.ignored_labels
        self.used: Counter[int] = Counter()
        self.maps_read = 0

    @staticmethod
    def reads(dataset: BaseDataset) -> bool:
        """Whether a data set has this format."""
        from mmseg.datasets import BaseSegDataset

        # A subclass that lists its files in another way may have pairs of images, or depth maps.
        return (
            isinstance(dataset, BaseSegDataset)
            and type(dataset).load_data_list is BaseSegDataset.load_data_list
        )

    def faults(self, quick: bool, title: str = '') -> list[Fault]:
        """Check the pairs; a quick check reads only a few of them."""
        faults = self._config_faults()
        if not self.pairs:
            folder = self.source.dataset.data_prefix.get('img_path')
            suffix = self.source.dataset.img_suffix
            return [*faults, fault('missing image', str(folder), f'no file here ends in {suffix}')]
        images, maps = zip(*self.pairs, strict=True)
        no_image = missing_files(images)
        no_map = missing_files([path or image for image, path in self.pairs])
        whole = []
        for i, (image, label_map) in enumerate(self.pairs):
            if no_image[i]:
                faults.append(fault('missing image', image, 'no such file', ('pair', i)))
            if label_map and no_map[i]:
                missing = f'the image {image} has none'
                faults.append(fault('missing label map', label_map, missing, ('pair', i)))
            if not no_image[i] and not (label_map and no_map[i]):
                whole.append(i)
        faults += self._maps_alone(maps)
        if quick:
            sample = whole[:: max(1, -(-len(whole) // SAMPLE))]
            faults += self._read(sample, title)
            whole = [i for i in whole if i not in sample] if self._unused_class() else []
            whole = whole[:: max(1, -(-len(whole) // _SUSPECT))]
        return [*faults, *self._read(whole, title), *self._unused_class()]

    def fix(self, target: Path, faults: Sequence[Fault]) -> Counter[tuple[str, str, str]]:
        """Write the names of the pairs without faults, as mmseg's `ann_file`.

        Returns:
            How many pairs were dropped, for which kind of fault.

        Raises:
            UserError: None is left.
        """
        dataset = self.source.dataset
        folder, suffix = dataset.data_prefix['img_path'], dataset.img_suffix
        bad = {found.entry: found.kind for found in faults if found.entry}
        kept = [
            str(Path(image).relative_to(folder)).removesuffix(suffix)
            for i, (image, _) in enumerate(self.pairs)
            if ('pair', i) not in bad
        ]
        if not kept:
            raise UserError(f'{folder}: no pair is without a fault')
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text('\n'.join(kept) + '\n')
        return Counter(('dropped', 'pairs', kind) for kind in bad.values())

    def _config_faults(self) -> list[Fault]:
        faults = []
        for place, step in self.source.steps('LoadAnnotations'):
            said = step.get('reduce_zero_label')
            if said not in (None, self.reduce):
                detail = f'{said} in the pipeline, {self.reduce} in the data set; mmseg stops'
                faults.append(fault('reduce_zero_label differs', place, detail))
            if any(label_map is None for _, label_map in self.pairs):
                detail = (
                    'the pipeline loads label maps (LoadAnnotations), but '
                    'data_prefix.seg_map_path does not say where they are'
                )
                faults.append(fault('missing label map', place, detail))
        return faults

    def _read(self, indices: Sequence[int], title: str) -> list[Fault]:
        """Check what is inside the files of some pairs."""
        backend = self.source.option('imdecode_backend', 'LoadAnnotations')
        read = partial(
            _inspect_pair,
            image=self.source.decoder,
            # As mmseg's LoadAnnotations reads it: palette indices stay indices.
            label_map=Decoder('unchanged', backend or 'pillow'),
        )
        results = read_all(read, [self.pairs[i] for i in indices], title)
        faults: list[Fault] = []
        for i, result in zip(indices, results, strict=True):
            faults += self._pair_faults(i, *result)
        return faults

    def _unused_class(self) -> list[Fault]:
        """Judge whether a label that is no class, as 255 in maps of 0 and 255, stands for one."""
        classes = self.source.classes
        first = int(self.reduce)
        if self.source.dataset.label_map or not self.maps_read or not classes:
            return []
        unused = [name for i, name in enumerate(classes, first) if not self.used[i]]
        numbers = range(len(classes) + first)  # with reduce_zero_label, 0 is said to be no class
        others = sorted(label for label in self.used if label not in numbers)
        # Of many classes some are rare; each of these labels could stand for one.
        if not others or not (0 < len(unused) <= len(others) or len(classes) - len(unused) <= 1):
            return []
        said = f'never use {first_names(unused)}' if unused else f'use no class but {classes[0]}'
        maps = max(self.used[label] for label in others)
        detail = (
            f'{self.maps_read} label maps {said}, while {maps} of them have '
            f'{", ".join(map(str, others[:5]))}, which is no class: if it stands for one, write '
            f'the maps with {first} to {max(2, len(classes)) - 1 + first}'
            + (', and name the other class too' if len(classes) == 1 else '')
        )
        return [fault('unused class', ', '.join(self.source.places), detail)]

    def _maps_alone(self, maps: Sequence[str | None]) -> Iterable[Fault]:
        dataset = self.source.dataset
        folder = dataset.data_prefix.get('seg_map_path')
        # A list of names takes a part of the folder.
        if not folder or dataset.ann_file:
            return
        paired, suffix = set(maps), dataset.seg_map_suffix
        for name in sorted(list_dir_or_file(folder, list_dir=False, suffix=suffix, recursive=True)):
            if (path := os.path.join(folder, name)) not in paired:
                yield fault('label map without image', path, 'is never read')

    def _pair_faults(
        self, index: int, inspected: Inspected, shape: Any, dtype: str, labels: list[int]
    ) -> Iterable[Fault]:
        image, label_map = self.pairs[index]
        entry = ('pair', index)
        size, note, remark = inspected
        if size is None:
            yield fault('unreadable image', image, note, entry)
        elif remark:
            yield fault('odd image', image, remark)
        if label_map is None:
            return
        if shape is None:
            yield fault('unreadable label map', label_map, dtype, entry)
            return
        if len(shape) != 2:
            detail = f'has {shape[2]} channels; a label map has one'
            yield fault('label map channels', label_map, detail, entry)
            return
        if dtype not in ('uint8', 'bool'):
            detail = f'is {dtype}, and mmseg keeps the lower 8 bits'
            yield fault('16-bit label map', label_map, detail, entry)
        if size and (shape[1], shape[0]) != size:
            detail = f'has {shape[1]}x{shape[0]} pixels, the image {size[0]}x{size[1]}{note}'
            yield fault('wrong label map size', label_map, detail, entry)
        self.used.update(labels)
        self.maps_read += 1
        outside = [label for label in labels if not self._is_label(label)]
        if outside and self.num_labels:
            detail = f'has {outside[:5]}; {self._legal_labels()}'
            yield fault('label outside classes', label_map, detail, entry)

    def _is_label(self, label: int) -> bool:
        if self.reduce:
            label = 255 if label in (0, 255) else label - 1
        return 0 <= label < self.num_labels or label in self.ignored

    def _legal_labels(self) -> str:
        first = int(self.reduce)
        zero = ', 0 unlabelled' if self.reduce else ''
        ignored = ', '.join(sorted(str(label) for label in self.ignored if label is not None))
        return (
            f'{self.num_labels} classes with reduce_zero_label={self.reduce} are '
            f'{first} to {self.num_labels - 1 + first}{zero}, ignored {ignored or "none"}'
        )


def reduce_zero_label_fault(maps: LabelMaps, others: Sequence[LabelMaps]) -> Fault | None:
    """Judge `reduce_zero_label` from the labels that are used.

    One label map can't tell whether its 0 is a class. Many of them give a hint: N classes that
    count from 0 never use N, and classes that count from 1 use it.

    Args:
        maps: Those of one split, read.
        others: Those of the other splits with the same classes, which show how often N is used.
    """
    last, used, read = maps.num_labels, maps.used, maps.maps_read
    if last < 2:
        return None
    place = ', '.join(maps.source.places)
    elsewhere = sum(other.used[last] for other in others)
    if elsewhere:
        expected = read * elsewhere / sum(other.maps_read for other in others)
    else:
        expected = min(used[label] for label in range(last))
    all_used = all(used[label] for label in range(last))
    if maps.reduce and all_used and not used[last] and expected >= _ENOUGH:
        detail = (
            f'True, but {read} label maps use each of 0 to {last - 1} and never {last}: if 0 is '
            f'the class {maps.source.dataset.metainfo["classes"][0]!r}, set it to False'
        )
        return fault('reduce_zero_label', place, detail)
    if not maps.reduce and used[last] >= max(2, 0.05 * read) and last not in maps.ignored:
        detail = (
            f'False, but {used[last]} of {read} label maps use {last}, one more than the last of '
            f'{last} classes: if 0 is unlabelled, set it to True in the data set and the pipeline'
        )
        return fault('reduce_zero_label', place, detail)
    return None


def _inspect_pair(pair: tuple[str, str | None], image: Decoder, label_map: Decoder) -> tuple:
    """The image as inspected; shape, dtype and labels of the map, or None and a reason."""
    inspected = inspect_image(pair[0], image)
    if pair[1] is None:
        return inspected, None, '', []
    try:
        labels = read_image(pair[1], label_map).pixels.squeeze()
    except Unreadable as error:
        return inspected, None, str(error), []
    values = _labels(labels) if labels.ndim == 2 else []
    return inspected, labels.shape, str(labels.dtype), values


def _labels(label_map: np.ndarray) -> list[int]:
    if label_map.dtype == np.uint8:  # counting is ten times faster than sorting
        return np.flatnonzero(np.bincount(label_map.ravel(), minlength=256)).tolist()
    return np.unique(label_map).astype(int).tolist()
