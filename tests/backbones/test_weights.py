"""The table of released weights, and how a name or URL becomes a checked local file."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest
import torch

from backbones import PoolFormer
from backbones.checkpoints import CheckpointError, localise, to_layout
from backbones.checkpoints.fetching import fetch
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
    # The file name is the key of the cache.
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
    assert (cache / 'poolformer_s12.pth.tar').is_file()


def test_a_download_is_recorded_and_checked_ever_after(cache, server):
    folder, url = server
    (folder / 'some.pth').write_bytes(b'weights')
    path = fetch(f'{url}/some.pth')
    assert path == cache / 'some.pth'
    assert path.read_bytes() == b'weights'
    digest = hashlib.sha256(b'weights').hexdigest()
    assert (cache / 'some.pth.sha256').read_text() == f'{digest}  some.pth\n'

    (folder / 'some.pth').unlink()  # what is there is not downloaded again
    assert fetch(f'{url}/some.pth') == path

    path.write_bytes(b'altered')
    with pytest.raises(CheckpointError, match=rf'not {digest} \(recorded in some\.pth\.sha256\)'):
        fetch(f'{url}/some.pth')

    path.unlink()  # another file under the same URL is refused as well
    (folder / 'some.pth').write_bytes(b'replaced')
    with pytest.raises(CheckpointError, match=f'not {digest}'):
        fetch(f'{url}/some.pth')


def test_a_cut_download_comes_whole_or_not_at_all(cache, server, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)
    folder, url = server
    (folder / 'some.pth').write_bytes(b'weights')
    monkeypatch.setattr(_Quiet, 'cuts', [3] * 4)
    with pytest.raises(CheckpointError, match=r'cut after 3 of 7 bytes.*try again to resume'):
        fetch(f'{url}/some.pth')
    assert sorted(path.name for path in cache.iterdir()) == ['some.pth.part', 'some.pth.part.json']
    assert fetch(f'{url}/some.pth').read_bytes() == b'weights'
    assert sorted(path.name for path in cache.iterdir()) == ['some.pth', 'some.pth.sha256']


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
    assert list(cache.iterdir()) == []  # what is wrong does not get its place
    assert fetch(f'{url}/some.pth#sha256={right.upper()}') == cache / 'some.pth'
    (cache / 'some.pth').write_bytes(b'altered')
    with pytest.raises(CheckpointError, match=f'not {right}'):
        fetch(f'{url}/some.pth#sha256={right}')


@pytest.mark.parametrize('end', ['#md5=00', '#sha256=00', '#sha256=', '#x'])
def test_a_checksum_that_is_none_is_refused(cache, end):
    with pytest.raises(CheckpointError, match='after # comes sha256= and 64 hexadecimal digits'):
        fetch(f'http://127.0.0.1:9/some.pth{end}')


@pytest.mark.parametrize('path', ['', '/', '/..', '/a/..'])
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
    assert not cache.exists() or not list(cache.iterdir())


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
