"""What COCO 2017 and ADE20K are published as, and what must be there in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlparse


@dataclass(frozen=True)
class Files:
    """Files that must be there.

    Attributes:
        folder: Their folder, below the top of the archive; empty for the top itself.
        pattern: Their names, as a shell pattern.
        count: How many there are.
    """

    folder: str
    pattern: str
    count: int


@dataclass(frozen=True)
class Archive:
    """A published zip file.

    Attributes:
        url: Where it is published.
        md5: Its checksum.
        size: Its bytes. Photographs do not shrink in a zip, so it unpacks to this much or more.
        into: The folder that it is unpacked in, below ``--root``.
        top: The one folder in it; all that it holds is below.
        files: What must be there when it is unpacked.
    """

    url: str
    md5: str
    size: int
    into: str
    top: str
    files: tuple[Files, ...]

    @property
    def name(self) -> str:
        """The file's name."""
        return PurePosixPath(urlparse(self.url).path).name

    @property
    def folder(self) -> str:
        """The folder that it fills, below ``--root``."""
        return f'{self.into}/{self.top}'


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: What it is called in print.
        archives: What it is published as.
        pairs: Two places each, below ``--root``, that must have the same file names but for the
            suffix: folders, or a COCO annotation file for the images that it lists.
    """

    name: str
    archives: tuple[Archive, ...]
    pairs: tuple[tuple[str, str], ...]


# The md5 sums are not published by COCO or ADE20K: they are those that other data loaders use.
_COCO = Dataset(
    name='COCO 2017',
    archives=(
        # The smallest first, so that a problem with the network or the disk shows early.
        Archive(
            url='http://images.cocodataset.org/annotations/annotations_trainval2017.zip',
            md5='f4bbac642086de4f52a3fdda2de5fa2c',
            size=252_907_541,
            into='coco',
            top='annotations',
            files=(
                Files('', 'instances_train2017.json', 1),
                Files('', 'instances_val2017.json', 1),
            ),
        ),
        Archive(
            url='http://images.cocodataset.org/zips/val2017.zip',
            md5='442b8da7639aecaf257c1dceb8ba8c80',
            size=815_585_330,
            into='coco',
            top='val2017',
            files=(Files('', '*.jpg', 5000),),
        ),
        Archive(
            url='http://images.cocodataset.org/zips/train2017.zip',
            md5='cced6f7f71b7629ddf16f17bbcfab6b2',
            size=19_336_861_798,
            into='coco',
            top='train2017',
            files=(Files('', '*.jpg', 118_287),),
        ),
    ),
    pairs=(
        ('coco/annotations/instances_train2017.json', 'coco/train2017'),
        ('coco/annotations/instances_val2017.json', 'coco/val2017'),
    ),
)

_ADE20K = Dataset(
    name='ADE20K',
    archives=(
        Archive(
            url='http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip',
            md5='7328b3957e407ddae1d3cbf487f149ef',
            size=967_382_037,
            into='ade',
            top='ADEChallengeData2016',
            files=(
                Files('images/training', '*.jpg', 20_210),
                Files('images/validation', '*.jpg', 2000),
                Files('annotations/training', '*.png', 20_210),
                Files('annotations/validation', '*.png', 2000),
            ),
        ),
    ),
    pairs=(
        (
            'ade/ADEChallengeData2016/images/training',
            'ade/ADEChallengeData2016/annotations/training',
        ),
        (
            'ade/ADEChallengeData2016/images/validation',
            'ade/ADEChallengeData2016/annotations/validation',
        ),
    ),
)

DATASETS = {'coco': _COCO, 'ade20k': _ADE20K}
