"""From every start to the layout that the configs expect; killed anywhere, and run again."""

from __future__ import annotations

import hashlib
import itertools
import os
import pickle
import random
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest
from mmengine.config import Config

from poolformer_dense.config.load import load_config
from poolformer_dense.data.archives import DATASETS, Dataset
from poolformer_dense.data.prepare import check_prepared, prepare
from poolformer_dense.errors import UserError

NAMES = ['coco', 'ade20k']
FOLDERS = {'coco': 'coco', 'ade20k': 'ade'}

# A process of its own that dies by SIGKILL at its n-th act on files or the network.
KILLED = """
import os, pickle, signal, sys
from pathlib import Path
from poolformer_dense.data.prepare import prepare
import encodings.idna, http.client, urllib.request
left = int(sys.argv[1])
ACTS = {'open', 'os.rename', 'os.mkdir', 'os.remove', 'os.symlink', 'os.truncate', 'os.scandir',
        'os.rmdir', 'socket.connect'}
def act(event, _):
    global left
    if event in ACTS:
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
dataset, arguments = pickle.loads(Path(sys.argv[2]).read_bytes())
sys.addaudithook(act)
prepare(dataset, **arguments)
print('acts:', int(sys.argv[1]) - left)
"""


@pytest.fixture
def serve(server, archives, small):
    """The server, with the archives; and the data set of this name on it."""
    server.files = {path.name: path.read_bytes() for path in archives.iterdir()}
    return lambda name: small(name, server.url)


@pytest.fixture
def tree(trees, contents):
    """What must lie below the root in the end."""

    def expected(name: str) -> dict[str, bytes]:
        return {f'{FOLDERS[name]}/{k}': v for k, v in contents(trees / FOLDERS[name]).items()}

    return expected


@pytest.fixture
def command(root, tmp_path_factory):
    """The words, after the interpreter, of a process that prepares and is killed at an act."""
    folder = tmp_path_factory.mktemp('command')
    (folder / 'killed.py').write_text(KILLED)

    def words(acts: int, dataset: Dataset, **arguments: object) -> list[str]:
        (folder / 'arguments').write_bytes(pickle.dumps((dataset, arguments)))
        return [str(folder / 'killed.py'), str(acts), str(folder / 'arguments')]

    return words


@pytest.fixture
def prepare_killed(command, run, root):
    """Prepare in another process, which is killed at its n-th act."""

    def killed(acts: int, dataset: Dataset, **arguments: object) -> subprocess.CompletedProcess:
        words = command(acts, dataset, **arguments)
        return run(*words, cwd=root, env={'PYTHONPATH': str(root)})

    return killed


@pytest.fixture
def acts(prepare_killed, tmp_path):
    """Count the acts of a process that is not killed."""

    def count(dataset: Dataset, **arguments: object) -> int:
        done = prepare_killed(10**9, dataset, root=tmp_path / 'whole', **arguments)
        found = re.search(r'acts: (\d+)', done.stdout)
        return int(found[1]) if found else pytest.fail(done.stderr)

    return count


CONFIGS = (
    'mask_rcnn_poolformer_s12',
    'fpn_poolformer_s12',
    'small/retinanet_poolformer_s12_bccd',
    'small/fpn_poolformer_s12_camvid',
)


def test_the_table_is_what_the_configs_expect(root):
    wanted = set()
    for config in CONFIGS:
        cfg = load_config(str(root / f'configs/{config}.py'), {})
        assert isinstance(cfg, Config)
        for split in ('train', 'val', 'test'):
            data = cfg[f'{split}_dataloader'].dataset
            wanted |= {Path(data.data_root, p) for p in data.data_prefix.values()}
            wanted |= {Path(data.data_root, data.ann_file)} if data.get('ann_file') else set()
    given = {Path('data', path) for dataset in DATASETS.values() for path in _brought(dataset)}
    assert wanted <= given
    for dataset in DATASETS.values():
        for archive in dataset.archives:
            known = [f.sha256 for f in archive.files if f.sha256]
            assert re.fullmatch('[0-9a-f]{32}', archive.md5) or known


def _brought(dataset: Dataset) -> Iterator[str]:
    for archive in dataset.archives:
        yield archive.folder
        for files in archive.files:
            name = files.folder if files.count > 1 else files.pattern
            yield f'{archive.folder}/{name}'
    if dataset.voc:
        for split in ('train', 'val', 'test'):
            yield f'{archive.into}/annotations/{split}.json'


@pytest.mark.parametrize('name', NAMES)
def test_from_nothing_by_the_network(serve, server, tree, contents, tmp_path, capsys, name):
    prepare(serve(name), tmp_path, backoff=0)
    assert contents(tmp_path) == tree(name)
    assert 'is complete' in capsys.readouterr().out
    check_prepared(serve(name), tmp_path)
    asked = len(server.requests)
    prepare(serve(name), tmp_path)
    assert 'nothing to do' in capsys.readouterr().out
    assert len(server.requests) == asked == len(serve(name).archives)


@pytest.mark.parametrize('name', NAMES)
def test_from_a_folder_of_archives_without_the_network(
    small, archives, tree, contents, tmp_path, name
):
    before = contents(archives)
    prepare(small(name), tmp_path, archives)
    assert contents(tmp_path) == tree(name)
    assert contents(archives) == before


def test_from_one_archive_the_rest_is_downloaded(serve, server, archives, tree, contents, tmp_path):
    prepare(serve('coco'), tmp_path, archives / 'train2017.zip')
    assert contents(tmp_path) == tree('coco')
    assert {n for n, _, _ in server.requests} == {'annotations_trainval2017.zip', 'val2017.zip'}
    shutil.rmtree(tmp_path / 'coco/val2017')  # the archive given is not needed any more
    prepare(serve('coco'), tmp_path, archives / 'train2017.zip')
    assert contents(tmp_path) == tree('coco')


@pytest.mark.parametrize(('name', 'below'), [
    ('coco', ''), ('coco', 'coco'),
    ('ade20k', ''), ('ade20k', 'ade'), ('ade20k', 'ade/ADEChallengeData2016'),
])  # fmt: skip
@pytest.mark.parametrize('copy', [False, True])
def test_from_an_unpacked_tree(small, trees, contents, tmp_path, name, below, copy, capsys):
    before = contents(trees)
    prepare(small(name), tmp_path, trees / below, copy=copy)
    assert contents(trees) == before
    for archive in small(name).archives:
        top = tmp_path / archive.folder
        assert top.is_symlink() is not copy
        for files in archive.files:
            original, mine = trees / archive.folder / files.folder, top / files.folder
            for path in original.glob(files.pattern):
                assert (mine / path.name).read_bytes() == path.read_bytes()
    check_prepared(small(name), tmp_path)
    prepare(small(name), tmp_path, trees / below, copy=copy)
    assert 'nothing to do' in capsys.readouterr().out


def test_a_tree_that_is_there_already_is_checked_and_kept(small, trees, tmp_path, capsys):
    shutil.copytree(trees / 'coco', tmp_path / 'coco')
    prepare(small('coco'), tmp_path)
    assert 'is complete' in capsys.readouterr().out
    prepare(small('coco'), tmp_path)
    assert 'nothing to do' in capsys.readouterr().out


def test_an_archive_beside_the_tree_is_used_and_kept(small, archives, tree, contents, tmp_path):
    (tmp_path / 'ade').mkdir()
    shutil.copy(archives / 'ADEChallengeData2016.zip', tmp_path / 'ade')
    prepare(small('ade20k'), tmp_path)
    found = contents(tmp_path)
    assert found.pop('ade/ADEChallengeData2016.zip')
    assert found == tree('ade20k')


def test_downloads_are_kept_on_demand(serve, archives, tree, contents, tmp_path, server, capsys):
    prepare(serve('ade20k'), tmp_path, keep_archives=True)
    kept = 'ade/downloads/ADEChallengeData2016.zip'
    assert contents(tmp_path).keys() == tree('ade20k').keys() | {kept}
    check_prepared(serve('ade20k'), tmp_path)
    prepare(serve('ade20k'), tmp_path)
    assert 'nothing to do' in capsys.readouterr().out
    assert len(server.requests) == 1


def test_a_mirror_takes_the_place_of_the_publisher(small, serve, server, tree, contents, tmp_path):
    prepare(small('coco'), tmp_path, mirror=f'{server.url}/deep/mirror/')
    assert contents(tmp_path) == tree('coco')


@pytest.mark.parametrize('everywhere', [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize('name', NAMES)
def test_killed_at_any_act_it_resumes(
    serve, prepare_killed, acts, tree, contents, tmp_path, name, everywhere
):
    dataset = serve(name)
    total = acts(dataset)
    rng = random.Random(0)
    # One place in each tenth, so that every stage is met.
    tenths = [round(i * total / 10) for i in range(11)]
    some = [rng.randrange(a, b) + 1 for a, b in itertools.pairwise(tenths)]
    for kill_at in range(1, total + 1) if everywhere else some:
        data = tmp_path / str(kill_at)
        assert prepare_killed(kill_at, dataset, root=data).returncode == -signal.SIGKILL
        there = {p: p.stat().st_ino for p in data.rglob('*.*g') if p.name[0] != '.'}
        prepare(dataset, data)
        assert contents(data) == tree(name)
        assert {p: p.stat().st_ino for p in there} == there  # not written a second time
        assert not list(data.rglob('*.part*'))


@pytest.mark.parametrize('copy', [False, True])
def test_killed_while_linking_or_copying_it_resumes(
    small, prepare_killed, acts, trees, tmp_path, copy
):
    dataset, source = small('coco'), trees / 'coco'
    total = acts(dataset, source=source, copy=copy)
    for i, kill_at in enumerate(random.Random(0).sample(range(1, total), 5)):
        arguments = dict(root=tmp_path / str(i), source=source, copy=copy)
        assert prepare_killed(kill_at, dataset, **arguments).returncode == -signal.SIGKILL
        prepare(dataset, **arguments)
        check_prepared(dataset, tmp_path / str(i))


def test_killed_in_the_middle_of_a_download_it_asks_for_the_rest(
    serve, server, command, root, tree, contents, tmp_path
):
    dataset = serve('ade20k')
    size = dataset.archives[0].size
    half = size // 2
    server.cuts, server.hold = [half], threading.Event()
    words = [sys.executable, *command(10**9, dataset, root=tmp_path)]
    process = subprocess.Popen(words, env=os.environ | {'PYTHONPATH': str(root)})
    assert server.held.wait(60)
    part = tmp_path / 'ade/downloads/ADEChallengeData2016.zip.part'
    while part.stat().st_size < half:  # sent, but perhaps not yet written
        assert process.poll() is None
    with pytest.raises(UserError, match='prepared by another process'):
        prepare(dataset, tmp_path)
    process.kill()
    process.wait()
    server.requests = []
    prepare(dataset, tmp_path)
    assert server.requests == [['ADEChallengeData2016.zip', f'bytes={half}-', size - half]]
    assert contents(tmp_path) == tree('ade20k')


def test_an_archive_that_is_not_as_published_is_refused_and_kept(small, archives, tmp_path):
    shutil.copytree(archives, tmp_path / 'archives')
    path = tmp_path / 'archives/val2017.zip'
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r'val2017\.zip has md5 .*, not .* Download it again'):
        prepare(small('coco'), tmp_path / 'root', tmp_path / 'archives')
    assert path.exists()
    assert not (tmp_path / 'root/coco/val2017').exists()


@pytest.mark.parametrize('name', ['../../outside', '/{}/outside', 'annotations/link'])
@pytest.mark.parametrize('how', ['download', 'from'])
def test_a_hostile_archive_is_refused_though_its_checksum_holds(
    serve, server, archives, tmp_path, name, how
):
    entry = ZipInfo(name.format(tmp_path))
    entry.create_system = 3
    entry.external_attr = (stat.S_IFLNK if 'link' in name else stat.S_IFREG | 0o644) << 16
    path = tmp_path / 'annotations_trainval2017.zip'
    shutil.copy(archives / path.name, path)
    with ZipFile(path, 'a') as file:
        file.writestr(entry, str(tmp_path))
    server.files[path.name] = path.read_bytes()
    dataset = serve('coco')
    row = replace(dataset.archives[0], md5=hashlib.md5(path.read_bytes()).hexdigest())
    dataset = replace(dataset, archives=(row, *dataset.archives[1:]))
    with pytest.raises(UserError, match=rf'the entry .*{name[-4:]}. .* nothing was unpacked'):
        prepare(dataset, tmp_path / 'root', path if how == 'from' else None)
    assert {p.name for p in tmp_path.iterdir()} == {'root', path.name}
    assert not (tmp_path / 'root/coco/annotations').exists()


def test_an_incomplete_tree_is_named_with_its_counts(small, trees, tmp_path):
    shutil.copytree(trees / 'coco', tmp_path / 'coco')
    next((tmp_path / 'coco/train2017').iterdir()).unlink()
    with pytest.raises(UserError, match=r'coco/train2017/\*\.jpg: 6 of 7 files.*leave --from out'):
        prepare(small('coco'), tmp_path / 'root', tmp_path / 'coco')


def test_a_source_without_anything_of_the_data_set_is_refused(small, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match=r'empty has nothing of COCO 2017: neither archives \(ann'):
        prepare(small('coco'), tmp_path / 'root', tmp_path / 'empty')
    with pytest.raises(UserError, match='none does not exist'):
        prepare(small('coco'), tmp_path / 'root', tmp_path / 'none')
    assert not (tmp_path / 'root').exists()


def test_a_half_filled_folder_is_not_replaced_by_a_link(small, trees, tmp_path):
    (tmp_path / 'root/coco/train2017').mkdir(parents=True)
    (tmp_path / 'root/coco/train2017/mine.jpg').write_text('mine')
    with pytest.raises(UserError, match=r'train2017 is there already and is not complete.*--copy'):
        prepare(small('coco'), tmp_path / 'root', trees)
    assert (tmp_path / 'root/coco/train2017/mine.jpg').read_text() == 'mine'


@pytest.mark.parametrize('link', ['coco', 'coco/val2017', 'coco/downloads'])
def test_nothing_is_written_through_a_link_that_leads_outside(serve, tmp_path, link):
    (tmp_path / 'outside').mkdir()
    place = tmp_path / 'root' / link
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / 'outside')
    with pytest.raises(UserError, match=rf'root/{link} is a link to .*outside'):
        prepare(serve('coco'), tmp_path / 'root')
    assert list((tmp_path / 'outside').iterdir()) == []


def test_a_record_that_is_a_link_is_replaced(small, archives, tmp_path):
    (tmp_path / 'victim').write_text('{}')
    (tmp_path / 'root/coco').mkdir(parents=True)
    (tmp_path / 'root/coco/.prepared.json').symlink_to(tmp_path / 'victim')
    prepare(small('coco'), tmp_path / 'root', archives)
    assert (tmp_path / 'victim').read_text() == '{}'


def test_a_linked_data_set_is_used_and_never_written_to(small, trees, contents, tmp_path, capsys):
    shutil.copytree(trees / 'coco', tmp_path / 'shared')
    (tmp_path / 'root').mkdir()
    (tmp_path / 'root/coco').symlink_to(tmp_path / 'shared')
    for _ in range(2):
        prepare(small('coco'), tmp_path / 'root')
        assert 'is complete' in capsys.readouterr().out
    assert not list((tmp_path / 'shared').glob('.*'))


def test_a_disk_that_is_too_small_is_named_before_the_first_byte(serve, server, tmp_path):
    dataset = serve('coco')
    huge = [replace(archive, size=10**17) for archive in dataset.archives]
    with pytest.raises(UserError, match=r'train2017\.zip takes 400\.0 PB, and .*free.*--root'):
        prepare(replace(dataset, archives=tuple(huge)), tmp_path)
    assert server.requests == []


def test_a_disk_that_gets_full_is_one_line(small, archives, tmp_path, file_limit):
    with file_limit(100), pytest.raises(UserError, match=f'{tmp_path}: File too large'):
        prepare(small('coco'), tmp_path, archives)
    assert not list(tmp_path.rglob('*.part'))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


FAULTS = [
    ('coco', 'coco/val2017/000000000001.jpg', Path.unlink, r'val2017/\*\.jpg: 2 of 3 files'),
    ('coco', 'coco/val2017/000000000001.jpg', _zero, '000000000001.jpg of .* damaged'),
    ('coco', 'coco/val2017/000000000002.jpg', _truncate, 'val2017.*other sizes'),
    ('coco', 'coco/annotations/instances_val2017.json', _truncate, 'instances_val2017.json of'),
    (
        'coco',
        'coco/train2017/000000000001.jpg',
        lambda p: p.rename(p.with_name('1.jpg')),
        'instances_train2017.json has 000000000001 and coco/train2017 has not',
    ),
    (
        'ade20k',
        'ade/ADEChallengeData2016/annotations/training/00000001.png',
        lambda p: p.rename(p.with_name('x.png')),
        'images/training has 00000001 and .*annotations/training has not',
    ),
    (
        'ade20k',
        'ade/ADEChallengeData2016/annotations/validation/00000001.png',
        lambda p: shutil.copy(p.parents[2] / 'images/validation/00000001.jpg', p),
        '00000001.png of .* damaged',
    ),
    (
        'coco',
        'coco/val2017/000000000009.jpg',
        lambda p: shutil.copy(p.with_name('000000000001.jpg'), p),
        r'val2017/\*\.jpg: 4 of 3 files',
    ),
]


@pytest.mark.parametrize(('name', 'path', 'fault', 'message'), FAULTS)
def test_verify_names_what_is_wrong_and_writes_nothing(
    small, archives, contents, tmp_path, name, path, fault, message
):
    prepare(small(name), tmp_path, archives)
    fault(tmp_path / path)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        check_prepared(small(name), tmp_path)
    assert '\n' not in str(caught.value)
    assert contents(tmp_path) == before


def test_verify_compares_every_byte_with_archives_that_are_there(small, archives, tmp_path):
    prepare(small('ade20k'), tmp_path, archives)
    path = tmp_path / 'ade/ADEChallengeData2016/images/training/00000003.jpg'
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    check_prepared(small('ade20k'), tmp_path)  # nothing shows it
    with pytest.raises(UserError, match=r'1 files less or other than .*training/00000003\.jpg'):
        check_prepared(small('ade20k'), tmp_path, archives)


def test_what_was_deleted_is_brought_back(serve, tree, contents, tmp_path):
    prepare(serve('coco'), tmp_path)
    (tmp_path / 'coco/val2017/000000000001.jpg').unlink()
    prepare(serve('coco'), tmp_path)
    assert contents(tmp_path) == tree('coco')


def test_what_was_changed_is_not_overwritten_but_named(serve, server, tmp_path):
    prepare(serve('coco'), tmp_path)
    path = tmp_path / 'coco/val2017/000000000001.jpg'
    path.write_bytes(path.read_bytes() + b'mine')
    with pytest.raises(UserError, match=r'other sizes than when it was prepared \(if that is'):
        prepare(serve('coco'), tmp_path)
    assert path.read_bytes().endswith(b'mine')
    (tmp_path / 'coco/.prepared.json').unlink()
    prepare(serve('coco'), tmp_path)
    assert len(server.requests) == 3
