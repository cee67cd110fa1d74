"""A data set that GitHub packs, with Pascal VOC boxes: brought, checked and converted."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import pytest

from poolformer_dense.data.archives import DATASETS, Dataset
from poolformer_dense.data.prepare import check_prepared, prepare
from poolformer_dense.data.tree import checksum
from poolformer_dense.errors import UserError
from tests.drawn import write_voc


@pytest.fixture
def published(server, tmp_path) -> Dataset:
    """BCCD's row for a drawn data set, on a server."""
    dataset = DATASETS['bccd']
    (archive,) = dataset.archives
    folder = tmp_path / archive.parent
    write_voc(folder / archive.top, num_train=3, num_val=2)
    (folder / 'README.md').write_text('beside it')
    with ZipFile(tmp_path / archive.name, 'w') as file:
        for path in sorted(folder.rglob('*')):
            file.write(path, path.relative_to(tmp_path))
    server.files = {archive.name: (tmp_path / archive.name).read_bytes()}
    files = tuple(
        replace(
            f, count=len(list((folder / archive.top / f.folder).glob(f.pattern))),
            sha256=checksum(f, folder / archive.top),
        )
        for f in archive.files
    )  # fmt: skip
    row = replace(archive, url=f'{server.url}/{archive.name}', size=1, files=files)
    return replace(dataset, archives=(row,))


def test_from_nothing_to_coco_files(published, tmp_path, capsys):
    root = tmp_path / 'data'
    prepare(published, root, backoff=0)
    said = capsys.readouterr().out
    assert 'BCCD: from github.com/Shenggan/BCCD_Dataset, MIT licence' in said
    assert sorted(p.name for p in (root / 'bccd').iterdir() if p.name[0] != '.') == [
        'BCCD', 'annotations'
    ]  # fmt: skip
    for split, count in (('train', 3), ('val', 2)):
        content = json.loads((root / f'bccd/annotations/{split}.json').read_bytes())
        assert len(content['images']) == count
        for image in content['images']:
            assert (root / 'bccd/BCCD' / image['file_name']).is_file()
    prepare(published, root)
    assert 'nothing to do' in capsys.readouterr().out


def test_a_lost_coco_file_is_written_again(published, tmp_path):
    root = tmp_path / 'data'
    prepare(published, root, backoff=0)
    path = root / 'bccd/annotations/val.json'
    before = path.read_bytes()
    path.unlink()
    with pytest.raises(UserError, match=r'val\.json is missing'):
        check_prepared(published, root)
    prepare(published, root)
    assert path.read_bytes() == before
    check_prepared(published, root)


def test_other_contents_are_refused(published, tmp_path):
    (archive,) = published.archives
    other = tmp_path / 'mine' / archive.top
    write_voc(other, num_train=3, num_val=2)
    xml = next((other / 'Annotations').iterdir())
    xml.write_text(xml.read_text().replace('<xmin>', '<xmin>1'))
    with pytest.raises(UserError, match=r'Annotations: \*.xml are not those published'):
        prepare(published, tmp_path / 'data', tmp_path / 'mine')
    assert not (tmp_path / 'data/bccd/annotations').exists()


@pytest.mark.parametrize('name', ['bccd', 'camvid'])
def test_the_real_one(name, tmp_path):
    real = Path(os.environ.get('TINY_COCO', '')).parent / 'real'
    if not real.is_dir():
        pytest.skip('there is no copy of it beside $TINY_COCO')
    prepare(DATASETS[name], tmp_path, real)
    check_prepared(DATASETS[name], tmp_path)
