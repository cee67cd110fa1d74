"""Zip files made to write elsewhere, to fill the disk or to lie, and damaged ones."""

from __future__ import annotations

import random
import stat
import struct
import warnings
import zipfile
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_LZMA, ZipFile, ZipInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolformer_dense.data.inside import OpenFolder
from poolformer_dense.data.unpack import differing_files, unpack
from poolformer_dense.errors import UserError

GOOD = {'top/a.jpg': b'a' * 5000, 'top/sub/b.png': b'b', 'top/empty': b''}


@pytest.fixture
def root(tmp_path) -> Path:
    """The folder for writing, beside one that must stay as it is."""
    (tmp_path / 'outside').mkdir()
    (tmp_path / 'outside/victim').write_text('mine')
    (tmp_path / 'root').mkdir()
    return tmp_path / 'root'


@pytest.fixture
def outside(root):
    """Assert that nothing outside the root has changed when the test ends."""
    yield root.parent / 'outside'
    names = {str(p.relative_to(root.parent)) for p in root.parent.rglob('*')}
    names = {n for n in names if not n.startswith('root') and not n.endswith('.zip')}
    assert names == {'outside', 'outside/victim'}
    assert (root.parent / 'outside/victim').read_text() == 'mine'


def _zip(
    root: Path, entries: dict[str | ZipInfo, bytes] | list, method: int = ZIP_DEFLATED
) -> Path:
    path = root.parent / 'archive.zip'
    pairs = entries.items() if isinstance(entries, dict) else entries
    with ZipFile(path, 'w', method) as file, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of a name that is there twice
        for name, content in pairs:
            file.writestr(name, content)
    return path


def _link(name: str, kind: int = stat.S_IFLNK) -> ZipInfo:
    info = ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o777) << 16
    return info


def _files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob('*') if p.is_file()}


def test_unpacks_what_is_below_the_top_and_leaves_out_the_rest(root, outside):
    path = _zip(root, {**GOOD, '__MACOSX/top/._a.jpg': b'?', 'topless': b'?', 'top/': b''})
    unpack(path, 'top', root, 'x/y')
    assert _files(root) == {f'x/y/{name}': content for name, content in GOOD.items()}
    assert differing_files(path, 'top', root / 'x/y') == []


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('../outside/victim', 'leads out'),
        ('top/../../../outside/victim', 'leads out'),
        ('top/..', 'leads out'),
        ('top/./a', 'leads out'),
        ('top//a', 'leads out'),
        ('/outside', 'is absolute'),
        ('//outside', 'is absolute'),
        ('C:/outside', 'is absolute'),
        ('c:outside', 'is absolute'),
        ('top\\..\\..\\outside', 'backslash'),
    ],
)
def test_names_that_lead_elsewhere_are_refused_before_anything_is_written(
    root, outside, name, reason
):
    path = _zip(root, {**GOOD, name: b'evil'})
    with pytest.raises(UserError, match=reason) as caught:
        unpack(path, 'top', root, 'x')
    assert repr(name) in str(caught.value)
    assert str(path) in str(caught.value)
    assert _files(root) == {}


def test_a_null_byte_does_not_hide_the_end_of_a_name(root, outside):
    path = _zip(root, {**GOOD, 'top/a.jpgX../b': b'evil'})
    path.write_bytes(path.read_bytes().replace(b'top/a.jpgX../b', b'top/a.jpg\0../b'))
    with pytest.raises(UserError, match=r'leads out|null byte'):
        unpack(path, 'top', root, 'x')
    assert _files(root) == {}


@pytest.mark.parametrize('kind', [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_links_and_devices_are_refused(root, outside, kind):
    target = str(outside / 'victim').encode()
    path = _zip(root, {**GOOD, _link('top/link', kind): target})
    with pytest.raises(UserError, match=r"'top/link' is a link or a device"):
        unpack(path, 'top', root, 'x')
    assert _files(root) == {}


@pytest.mark.parametrize(
    ('names', 'reason'),
    [
        (['top/a', 'top/a'], "'top/a' is there twice"),
        (['top/a', 'top/a/b'], "'top/a/b' lies in what is a file"),
        (['top', 'top/a'], "'top/a' lies in what is a file"),
    ],
)
def test_names_that_clash_are_refused(root, outside, names, reason):
    with pytest.raises(UserError, match=reason):
        unpack(_zip(root, [(name, b'1') for name in names]), 'top', root, 'x')
    assert _files(root) == {}


def test_a_bomb_is_refused_by_what_it_declares(root, outside):
    path = _zip(root, {'top/zeros': bytes(20_000_000)})
    assert path.stat().st_size < 50_000
    with pytest.raises(UserError, match=r'would unpack to 20\.0 MB'):
        unpack(path, 'top', root, 'x')
    assert _files(root) == {}


def test_a_bomb_that_declares_little_is_cut_at_what_it_declares(root, outside, file_limit):
    path = _zip(root, {'top/zeros': bytes(20_000_000)})
    size = struct.pack('<I', 20_000_000)
    path.write_bytes(path.read_bytes().replace(size, struct.pack('<I', 1000)))
    with file_limit(1000), pytest.raises(UserError, match='damaged'):
        unpack(path, 'top', root, 'x')
    assert _files(root) == {}


def test_unusual_compression_is_refused(root, outside):
    with pytest.raises(UserError, match='than by deflate'):
        unpack(_zip(root, GOOD, ZIP_LZMA), 'top', root, 'x')


@pytest.mark.parametrize('place', ['x', 'x/top', 'x/top/sub'])
def test_links_below_the_root_are_not_written_through(root, outside, place):
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    (root / place).symlink_to(outside)
    with pytest.raises(UserError, match=rf'root/{place} is a link to .*outside.*delete the link'):
        unpack(_zip(root, GOOD), 'top', root, 'x')


def test_links_in_place_of_files_are_replaced(root, outside):
    (root / 'x/top').mkdir(parents=True)
    for name in ('a.jpg', '.a.jpg.part'):
        (root / 'x/top' / name).symlink_to(outside / 'victim')
    unpack(_zip(root, GOOD), 'top', root, 'x')
    assert (root / 'x/top/a.jpg').read_bytes() == GOOD['top/a.jpg']
    assert not (root / 'x/top/a.jpg').is_symlink()


def test_the_root_itself_may_be_a_link(root, tmp_path):
    (tmp_path / 'data').symlink_to(root)
    unpack(_zip(root, GOOD), 'top', tmp_path / 'data', 'x')
    assert len(_files(root)) == 3


def test_a_file_in_place_of_a_folder_is_named(root):
    (root / 'x').write_text('')
    with pytest.raises(UserError, match='root/x is a file where a folder is needed'):
        unpack(_zip(root, GOOD), 'top', root, 'x')


def test_only_what_is_missing_or_wrong_is_written(root):
    path = _zip(root, GOOD)
    unpack(path, 'top', root, 'x')
    before = {p: p.stat().st_ino for p in root.rglob('*')}
    wrong, gone = root / 'x/top/a.jpg', root / 'x/top/sub/b.png'
    wrong.write_bytes(b'A' * 5000)  # the size is right
    gone.unlink()
    assert differing_files(path, 'top', root / 'x') == ['top/a.jpg', 'top/sub/b.png']
    unpack(path, 'top', root, 'x')
    assert _files(root) == {f'x/{name}': content for name, content in GOOD.items()}
    assert (root / 'x/top/empty').stat().st_ino == before[root / 'x/top/empty']
    assert wrong.stat().st_ino != before[wrong]


def test_a_full_disk_is_named_before_it_is_full(root, monkeypatch):
    monkeypatch.setattr(OpenFolder, 'free', lambda _: 12_000)
    with pytest.raises(UserError, match=r'takes 12\.3 kB, and .*/x has 12\.0 kB free.*--root'):
        unpack(_zip(root, GOOD), 'top', root, 'x')
    (root / 'x/top').mkdir(parents=True)
    (root / 'x/top/sub').mkdir()
    (root / 'x/top/sub/b.png').write_bytes(b'b')  # one block less
    unpack(_zip(root, GOOD), 'top', root, 'x')


@given(seed=st.integers(0, 10**6), how=st.sampled_from(['flip', 'cut', 'fill']))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_archive_gives_one_error_or_right_files_only(root, outside, seed, how):
    rng = random.Random(seed)
    path = _zip(root, {name: rng.randbytes(len(GOOD[name])) for name in GOOD})
    with ZipFile(path) as file:
        good = {f'x{seed}/{name}': file.read(name) for name in file.namelist()}
    content = bytearray(path.read_bytes())
    # Half of the places are in the list of contents, at the end.
    place = rng.randrange(len(content) if rng.random() < 0.5 else 400)
    place = len(content) - 1 - place
    if how == 'flip':
        content[place] ^= 1 << rng.randrange(8)
    elif how == 'cut':
        del content[place:]
    else:
        content[place : place + 8] = bytes(len(content[place : place + 8]))
    path.write_bytes(content)
    try:
        unpack(path, 'top', root, f'x{seed}')
    except UserError:
        return
    kept = {n: c for n, c in _files(root).items() if n.startswith(f'x{seed}/')}
    # A list that was cut short may lack files: that is for the checksum and the counts to find.
    assert kept.items() <= good.items()


def test_what_is_no_zip_is_named(root):
    path = root.parent / 'page.zip'
    path.write_text('<html>please log in</html>')
    with pytest.raises(UserError, match=r'page\.zip is damaged .*download it again'):
        unpack(path, 'top', root, 'x')
    assert zipfile.is_zipfile(path) is False
