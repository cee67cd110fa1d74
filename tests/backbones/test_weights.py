"""The table of released weights, and how a name or URL becomes a checked local file."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backbones import PoolFormer
from backbones.checkpoints import CheckpointError, fetching, localise, to_layout
from backbones.checkpoints.fetching import _place, fetch
from backbones.presets import PRESETS
from backbones.weights import RELEASED, Weights


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's folder of checkpoints, empty."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    return tmp_path / 'hub' / 'checkpoints'


@pytest.fixture
def server(tmp_path):
    """A folder and the URL it is served at."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = partial(_Quiet, directory=str(folder))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{http.server_port}'
        http.shutdown()


def _names(cache):
    return sorted(path.name for path in cache.rglob('*') if path.is_file())


class _Quiet(SimpleHTTPRequestHandler):
    cuts: ClassVar[list[int]] = []  # bytes after which the connections to come are cut

    def copyfile(self, source, outputfile):
        if self.cuts:
            outputfile.write(source.read(self.cuts.pop(0)))
        else:
            super().copyfile(source, outputfile)

    def log_message(self, *_):
        pass


def test_every_preset_has_released_weights_of_its_own():
    assert {name for name in PRESETS if name not in RELEASED} == set()
    assert all(RELEASED[name].arch == name for name in PRESETS)
    assert all(weights.arch in PRESETS for weights in RELEASED.values())
    assert len({weights.url for weights in RELEASED.values()}) == len(RELEASED)
    # The file name is the key of a mirror.
    assert len({w.url.rsplit('/', 1)[1] for w in RELEASED.values()}) == len(RELEASED)


@pytest.mark.parametrize(
    ('name', 'url', 'top1'),
    [
        (
            'poolformer_s12',
            'https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s12.pth.tar',
            77.2,
        ),
        (
            'metaformer_ppaa_s12_224',
            'https://github.com/sail-sg/poolformer/releases/download/v1.0/'
            'metaformer_ppaa_s12_224.pth.tar',
            81.0,
        ),
        (
            'caformer_s18',
            'https://huggingface.co/sail/dl/resolve/main/caformer/caformer_s18.pth',
            83.6,
        ),
        (
            'convformer_b36_384_in21ft1k',
            'https://huggingface.co/sail/dl/resolve/main/convformer/'
            'convformer_b36_384_in21ft1k.pth',
            87.6,
        ),
    ],
)
def test_released_rows_written_by_hand(name, url, top1):
    weights = RELEASED[name]
    assert (weights.url, weights.top1, weights.licence) == (url, top1, 'Apache-2.0')
    assert weights.resolution == (384 if '384' in name else 224)


def _release(monkeypatch, url, name='poolformer_s12', sha256=None):
    monkeypatch.setitem(RELEASED, name, Weights('poolformer_s12', url, None, sha256=sha256))


def test_a_config_names_released_weights_without_a_url(cache, server, monkeypatch):
    folder, url = server
    source = PoolFormer('s12')
    weights = {k: v for k, v in source.state_dict().items() if 'output_norms' not in k}
    torch.save(to_layout(weights, 'official'), folder / 'poolformer_s12.pth.tar')
    _release(monkeypatch, f'{url}/poolformer_s12.pth.tar')
    model = PoolFormer('s12', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s12'))
    model.init_weights()
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in weights.items())
    assert len(list(cache.glob('*/poolformer_s12.pth.tar'))) == 1


def test_a_download_is_recorded_and_checked_ever_after(cache, server):
    folder, url = server
    (folder / 'some.pth').write_bytes(b'weights')
    path = fetch(f'{url}/some.pth')
    assert path.parents[1] == cache
    assert path.read_bytes() == b'weights'
    digest = hashlib.sha256(b'weights').hexdigest()
    assert path.with_name('some.pth.sha256').read_text() == f'{digest}  some.pth\n'
    assert path.with_name('some.pth.url').read_text() == f'{url}/some.pth\n'

    (folder / 'some.pth').unlink()  # what is there is not downloaded again
    assert fetch(f'{url}/some.pth') == path

    path.write_bytes(b'altered')
    with pytest.raises(CheckpointError, match=rf'not {digest} \(recorded in some\.pth\.sha256\)'):
        fetch(f'{url}/some.pth')

    path.unlink()  # another file under the same URL is refused as well
    (folder / 'some.pth').write_bytes(b'replaced')
    with pytest.raises(CheckpointError, match=f'not {digest}'):
        fetch(f'{url}/some.pth')


@pytest.mark.parametrize('other', ['b/model.pth', 'a/model.pth?version=2', 'a/../model.pth'])
def test_files_of_one_name_are_kept_apart(cache, server, other):
    folder, url = server
    for name in ('a', 'b', '.'):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / 'model.pth').write_text(f'weights of {name}')
    first, second = fetch(f'{url}/a/model.pth'), fetch(f'{url}/{other}')
    assert first != second
    assert first.read_text() == 'weights of a'
    assert second.with_name('model.pth.url').read_text() == f'{url}/{other}\n'
    assert fetch(f'{url}/a/model.pth') == first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text('ab/.%=~é \\', min_size=1), min_size=2, max_size=2, unique=True))
def test_each_url_has_its_place_in_the_cache(cache, paths):
    places = [_place(f'https://host/{path}/model.pth') for path in paths]
    assert places[0] != places[1]
    assert all(place.parents[1] == cache and place.name == 'model.pth' for place in places)


def test_a_password_is_not_kept(cache, monkeypatch):
    monkeypatch.setattr(fetching, 'transfer', lambda url, file, *_, **__: file.write(b'weights'))
    path = fetch('https://me:secret@host/some.pth')
    assert path.with_name('some.pth.url').read_text() == 'https://host/some.pth\n'


class TestFilesUnderTheirNameAlone:
    """What torch.hub and earlier versions have left in the folder."""

    def test_are_used_if_their_checksum_fits(self, cache):
        right = hashlib.sha256(b'weights').hexdigest()
        cache.mkdir(parents=True)
        for name in ('some.pth', f'some-{right[:8]}.pth'):
            (cache / name).write_bytes(b'weights')
        url = 'http://127.0.0.1:9'  # nobody answers
        assert fetch(f'{url}/some.pth#sha256={right}') == cache / 'some.pth'
        assert fetch(f'{url}/some-{right[:8]}.pth') == cache / f'some-{right[:8]}.pth'

    def test_are_downloaded_anew_if_nothing_tells_where_they_are_from(self, cache, server):
        folder, url = server
        wrong = hashlib.sha256(b'of another').hexdigest()
        cache.mkdir(parents=True)
        (cache / 'some.pth').write_bytes(b'of another')
        (cache / 'some.pth.sha256').write_text(f'{wrong}  some.pth\n')
        (folder / 'some.pth').write_bytes(b'weights')
        right = hashlib.sha256(b'weights').hexdigest()
        for source in (f'{url}/some.pth', f'{url}/some.pth#sha256={right}'):
            assert fetch(source).read_bytes() == b'weights'
        assert (cache / 'some.pth').read_bytes() == b'of another'


def test_a_cut_download_comes_whole_or_not_at_all(cache, server, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    folder, url = server
    (folder / 'some.pth').write_bytes(b'weights')
    monkeypatch.setattr(_Quiet, 'cuts', [3] * 4)
    with pytest.raises(CheckpointError, match=r'cut after 3 of 7 bytes.*try again to resume'):
        fetch(f'{url}/some.pth')
    assert _names(cache) == ['some.pth.part', 'some.pth.part.json']
    assert fetch(f'{url}/some.pth').read_bytes() == b'weights'
    assert _names(cache) == ['some.pth', 'some.pth.sha256', 'some.pth.url']


def test_a_known_checksum_is_checked(cache, server, monkeypatch):
    folder, url = server
    (folder / 'known.pth').write_bytes(b'weights')
    right = hashlib.sha256(b'weights').hexdigest()
    _release(monkeypatch, f'{url}/known.pth', sha256=right)
    assert fetch('poolformer_s12').is_file()
    _release(monkeypatch, f'{url}/known.pth', sha256='0' * 64)
    with pytest.raises(CheckpointError, match=f'has sha256 {right}, not 0000'):
        fetch('poolformer_s12')


def test_a_given_checksum_is_checked(cache, server):
    folder, url = server
    (folder / 'some.pth').write_bytes(b'weights')
    right = hashlib.sha256(b'weights').hexdigest()
    with pytest.raises(CheckpointError, match=f'has sha256 {right}, not 0000'):
        fetch(f'{url}/some.pth#sha256={"0" * 64}')
    assert _names(cache) == []  # what is wrong does not get its place
    path = fetch(f'{url}/some.pth#sha256={right.upper()}')
    assert path == fetch(f'{url}/some.pth')
    path.write_bytes(b'altered')
    with pytest.raises(CheckpointError, match=f'not {right}'):
        fetch(f'{url}/some.pth#sha256={right}')


@pytest.mark.parametrize('end', ['#md5=00', '#sha256=00', '#sha256=', '#x'])
def test_a_checksum_that_is_none_is_refused(cache, end):
    with pytest.raises(CheckpointError, match='after # comes sha256= and 64 hexadecimal digits'):
        fetch(f'http://127.0.0.1:9/some.pth{end}')


@pytest.mark.parametrize('path', ['', '/', '/..', '/a/..', '/a\0b.pth', '/a\x1b[2J.pth'])
def test_a_url_without_a_file_is_refused(cache, path):
    with pytest.raises(CheckpointError, match='does not end with the name of a file'):
        fetch(f'http://127.0.0.1:9{path}')


def test_a_mirror_is_held_to_the_checksum(monkeypatch):
    _release(monkeypatch, 'https://x/known.pth', sha256='1' * 64)
    there = localise('poolformer_s12', 'https://mirror')
    assert there == f'https://mirror/known.pth#sha256={"1" * 64}'
    given = f'https://x/other.pth#sha256={"2" * 64}'
    assert localise(given, 'https://mirror/') == f'https://mirror/other.pth#sha256={"2" * 64}'


def test_the_checksum_in_a_name_is_checked(cache, server):
    folder, url = server
    right = hashlib.sha256(b'weights').hexdigest()[:8]
    for name in (f's12-{right}.pth', 's12-01234567.pth'):
        (folder / name).write_bytes(b'weights')
    assert fetch(f'{url}/s12-{right}.pth').is_file()
    with pytest.raises(CheckpointError, match=r'not 01234567 \(in its name\)'):
        fetch(f'{url}/s12-01234567.pth')


def test_what_is_not_there_names_the_place_to_put_it(cache, server, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    _, url = server
    for address in (f'{url}/poolformer_s12.pth.tar', 'http://127.0.0.1:9/poolformer_s12.pth.tar'):
        with pytest.raises(CheckpointError, match=f'could not be downloaded.*{cache}'):
            fetch(address)
    assert _names(cache) == []


def test_a_misspelt_name_is_told_the_right_one():
    with pytest.raises(CheckpointError, match=r'did you mean poolformer_s12\?'):
        fetch('poolfomer_s12')


def test_a_mirror_is_a_folder_or_a_url(tmp_path):
    name = 'caformer_s18'
    (tmp_path / 'caformer_s18.pth').write_bytes(b'weights')
    for source in (name, RELEASED[name].url):
        assert localise(source, str(tmp_path)) == str(tmp_path / 'caformer_s18.pth')
        assert localise(source, 'http://mirror/w/') == 'http://mirror/w/caformer_s18.pth'
        assert localise(source, None) == localise(source, '') == source
    assert localise('./local.pth', str(tmp_path)) == './local.pth'
    with pytest.raises(CheckpointError, match=r'convformer_s18\.pth is not in the mirror .*https'):
        localise('convformer_s18', str(tmp_path))
