"""Reading annotation files of Pascal VOC, one XML file for each image.

The format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html, as LabelImg,
CVAT and others write it: `annotation` with `size` and, for each object, `name`, `difficult` and
`bndbox` (the first and the last pixel, counted from 1).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')


class VocObject(NamedTuple):
    """An object as the file has it.

    Attributes:
        name: Its class, with the blanks around it; None if the file has none.
        corners: The texts of `CORNERS`; None where one is missing.
        difficult: The text of ``difficult``, '0' if there is none.
        line: Where it begins in the file.
    """

    name: str | None
    corners: tuple[str | None, ...]
    difficult: str
    line: int

    def box(self) -> tuple[float, float, float, float]:
        """Return the corners as numbers.

        Raises:
            ValueError: One is missing or not a finite number.
        """
        for corner, text in zip(CORNERS, self.corners, strict=True):
            if text is None:
                raise ValueError(f'has no {corner}')
            try:
                finite = math.isfinite(float(text))
            except ValueError:
                finite = False
            if not finite:
                raise ValueError(f'{corner} is {text!r}, not a number')
        x1, y1, x2, y2 = (float(text) for text in self.corners if text)
        return x1, y1, x2, y2


class VocAnnotation(NamedTuple):
    """An annotation file.

    Attributes:
        size: The texts of width and height; None if the file doesn't state them.
        objects: Its objects.
    """

    size: tuple[str, str] | None
    objects: list[VocObject]

    def stated_size(self) -> tuple[int, int] | None:
        """Return width and height, None if they are not stated.

        Raises:
            ValueError: They are no positive whole numbers.
        """
        if self.size is None:
            return None
        try:
            width, height = map(int, self.size)
        except ValueError:
            width = height = 0
        if width <= 0 or height <= 0:
            raise ValueError('width is {!r}, height is {!r}'.format(*self.size))
        return width, height


def read_voc(path: Path) -> VocAnnotation:
    """Read an annotation file.

    Raises:
        OSError: It is not there or can't be read.
        ValueError: It is not XML.
    """
    root = _parse(path.read_bytes())
    size = root.find('size')
    return VocAnnotation(
        None if size is None else (_text(size, 'width'), _text(size, 'height')),
        [_object(element) for element in root.findall('object')],
    )


def bare_name(name: str) -> str:
    """Return a name without what people write in different ways: case, blanks, hyphens."""
    return ''.join(c for c in name.casefold() if c.isalnum() or c in '+#')


def _object(element: ElementTree.Element) -> VocObject:
    box = element.find('bndbox')
    corners = [None if box is None else box.find(corner) for corner in CORNERS]
    return VocObject(
        element.findtext('name'),
        tuple(None if corner is None else corner.text or '' for corner in corners),
        '0' if element.find('difficult') is None else _text(element, 'difficult'),
        int(element.get('line', 0)),
    )


def _text(element: ElementTree.Element, name: str) -> str:
    return (element.findtext(name) or '').strip()


def _parse(content: bytes) -> ElementTree.Element:
    """Parse XML; each element gets the attribute ``line``, which ElementTree alone can't tell."""
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda tag, _: builder.start(
        tag, {'line': str(parser.CurrentLineNumber)}
    )
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f'is not XML: {error}') from error
    return builder.close()
