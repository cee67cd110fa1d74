"""What a conversion puts into a COCO annotation file, and what it can't."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_utils

from ..errors import UserError
from ..files import replacing
from .decoding import inspect_image
from .images import read_all

# Suffixes of images, in lower case.
IMAGE_SUFFIXES = frozenset(['.bmp', '.jpeg', '.jpg', '.png', '.tif', '.tiff', '.webp'])


@dataclass
class CocoBuilder:
    """One annotation file in the making.

    Attributes:
        root: The folder to which the names of images are relative.
        categories: Names by category id, in the order of the file.
        images: Entries of images.
        annotations: Entries of objects.
        problems: What can't be converted, each with its file and line.
        notes: How often something was changed or left out that needs no correction.
    """

    root: Path
    categories: Mapping[int, str]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def add_image(self, path: Path, size: tuple[int, int]) -> None:
        """Add an image of (width, height); objects that are added later are in it."""
        name = os.path.relpath(path, self.root)
        image_id = len(self.images) + 1
        self.images.append(dict(id=image_id, file_name=name, width=size[0], height=size[1]))

    def add_object(
        self,
        category: int,
        box: tuple[float, float, float, float],
        polygon: Sequence[float] = (),
        crowd: bool = False,
    ) -> None:
        """Add an object of the last image, clipped to it.

        Args:
            category: Its category id.
            box: Left, top, right and bottom in pixels; of a polygon the one around it.
            polygon: x1, y1, x2, y2, ... in pixels; empty without a mask.
            crowd: Whether training and evaluation ignore it.

        Raises:
            ValueError: Nothing of it is inside the image.
        """
        image = self.images[-1]
        width, height = image['width'], image['height']
        left, right = (min(max(x, 0), width) for x in box[::2])
        top, bottom = (min(max(y, 0), height) for y in box[1::2])
        bbox = [round(v, 2) for v in (left, top, right - left, bottom - top)]
        if min(bbox[2:]) <= 0:
            edges = ', '.join(f'{edge:g}' for edge in box)
            raise ValueError(
                f'nothing is left of the box in the image of {width}x{height} pixels; its left, '
                f'top, right and bottom are {edges}'
            )
        clipped = (left, top, right, bottom)
        if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > 1:
            self.notes['objects reach beyond the image by more than a pixel and are clipped'] += 1
        area = bbox[2] * bbox[3]
        segmentation = []
        if polygon:
            inside = [min(max(v, 0), (width, height)[i % 2]) for i, v in enumerate(polygon)]
            segmentation = [[round(v, 2) for v in inside]]
            # As COCO counts it: pixels of the mask.
            area = float(mask_utils.area(mask_utils.frPyObjects(segmentation, height, width))[0])
            if area <= 0:
                raise ValueError('the polygon covers no pixel')
        self.annotations.append(
            dict(
                id=len(self.annotations) + 1,
                image_id=image['id'],
                category_id=category,
                bbox=bbox,
                area=round(area, 4),
                segmentation=segmentation,
                iscrowd=int(crowd),
            )
        )

    def content(self) -> dict[str, Any]:
        """Return what goes into the file."""
        categories = [dict(id=i, name=name) for i, name in self.categories.items()]
        return dict(images=self.images, annotations=self.annotations, categories=categories)

    def summary(self) -> str:
        """Say in one line what it holds."""
        with_objects = {entry['image_id'] for entry in self.annotations}
        counts = Counter(entry['category_id'] for entry in self.annotations)
        classes = ', '.join(f'{name} {counts[i]}' for i, name in self.categories.items())
        return (
            f'{len(self.images)} images ({len(self.images) - len(with_objects)} without objects), '
            f'{len(self.annotations)} objects ({classes})'
        )


def read_sizes(
    paths: Sequence[Path], title: str = ''
) -> dict[Path, tuple[tuple[int, int] | None, str]]:
    """Return for each image (width, height) as it is trained, turned by EXIF, and a note.

    An image that can't be read to its end has None and the reason.
    """
    results = read_all(inspect_image, [str(path) for path in paths], title)
    return {path: found[:2] for path, found in zip(paths, results, strict=True)}


def image_names(folder: Path) -> dict[str, list[Path]]:
    """Return the images directly in a folder by their names without suffix."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            found.setdefault(path.stem, []).append(path)
    return found


def write_splits(builders: Mapping[str, CocoBuilder], out: Path, drop: bool = False) -> list[Path]:
    """Write a file for each split, all or none of them.

    Args:
        builders: What goes into each file, by its name without suffix.
        out: The folder.
        drop: Write although something can't be converted, without that.

    Raises:
        UserError: Something can't be converted, a file is there already, or no image is left.
    """
    paths = {name: out / f'{name}.json' for name in builders}
    for name, builder in builders.items():
        if paths[name].exists():
            raise UserError(f'{paths[name]} is there already; delete it or give another folder')
        if not builder.images:
            raise UserError(f'{name}: there is no image to convert below {builder.root}')
    if not drop and (count := sum(len(builder.problems) for builder in builders.values())):
        raise UserError(
            f'{count} things can not be converted, so nothing is written. Correct them, or leave '
            'out these objects and images with --drop'
        )
    out.mkdir(parents=True, exist_ok=True)
    for name, builder in builders.items():
        with replacing(paths[name]) as file:
            file.write(json.dumps(builder.content(), ensure_ascii=False).encode())
    return list(paths.values())
