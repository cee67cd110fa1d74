"""Downloads against a real server that cuts, forgets, changes and lies."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolformer_dense.data.download import download
from poolformer_dense.data.inside import OpenFolder, open_folder
from poolformer_dense.errors import UserError

OLD, NEW = (random.Random(seed).randbytes(300_000) for seed in (0, 1))
LAST_MODIFIED = {'Last-Modified': 'Sat, 02 Sep 2017 10:00:00 GMT'}


def _md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def get(server, tmp_path):
    """Download `x.zip` as if it were of the given content; return what came."""

    def run(expected: bytes, name: str = 'x.zip') -> bytes:
        with open_folder(tmp_path) as folder:
            download(f'{server.url}/{name}', folder, name, _md5(expected), backoff=0)
        assert [p.name for p in tmp_path.iterdir()] == [name]
        return (tmp_path / name).read_bytes()

    return run


@given(
    cuts=st.lists(st.integers(0, len(OLD) - 1), max_size=5),
    ranges=st.booleans(),
    conditional=st.booleans(),
    validators=st.sampled_from([{'ETag': '"{md5}"'}, {'ETag': 'W/"1"'}, LAST_MODIFIED, {}]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_download_cut_anywhere_comes_whole(get, server, tmp_path, **behaviour):
    (tmp_path / 'x.zip').unlink(missing_ok=True)
    server.files, server.requests = {'x.zip': OLD}, []
    for key, value in behaviour.items():
        setattr(server, key, list(value) if key == 'cuts' else value)
    assert get(OLD) == OLD
    sent = sum(count for _, _, count in server.requests)
    if server.ranges:
        assert sent == len(OLD)  # no byte twice
    else:
        assert server.requests[-1][2] == len(OLD)


def test_a_later_run_asks_for_what_is_missing_only(get, server, tmp_path):
    server.files = {'x.zip': OLD}
    server.cuts = [1000] + [0] * 6
    with pytest.raises(UserError, match=r'cut .* 6 times in a row; run .* to resume, .*--mirror'):
        get(OLD)
    assert (tmp_path / 'x.zip.part').read_bytes() == OLD[:1000]
    server.requests = []
    assert get(OLD) == OLD
    assert server.requests == [['x.zip', 'bytes=1000-', len(OLD) - 1000]]


def test_waiting_doubles_and_starts_afresh_when_bytes_come(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr('time.sleep', waits.append)
    server.files, server.statuses = {'x.zip': OLD}, [503, 500, 429]
    server.cuts = [10, 20]
    with open_folder(tmp_path) as folder:
        download(f'{server.url}/x.zip', folder, 'x.zip', _md5(OLD))
    assert waits == [2, 4, 8, 1, 1]


@pytest.mark.parametrize('validators', [{'ETag': '"{md5}"'}, {'Last-Modified': '{md5}'}])
@pytest.mark.parametrize('conditional', [True, False])
@pytest.mark.parametrize('length', [len(NEW), 2000, 500])
def test_two_versions_are_not_glued_together(
    get, server, tmp_path, validators, conditional, length
):
    new = NEW[:length]
    server.validators, server.conditional = validators, conditional
    server.files, server.cuts = {'x.zip': OLD}, [1000] + [0] * 6
    with pytest.raises(UserError):
        get(new)
    server.files = {'x.zip': new}
    assert get(new) == new


def test_versions_that_nothing_tells_apart_are_caught_by_the_checksum(get, server, tmp_path):
    server.validators = {}
    server.files, server.cuts = {'x.zip': OLD}, [1000] + [0] * 6
    with pytest.raises(UserError):
        get(NEW)
    server.files = {'x.zip': NEW}
    with pytest.raises(UserError, match='was deleted'):
        get(NEW)
    assert get(NEW) == NEW


def test_wrong_bytes_are_deleted_and_the_error_names_the_remedy(get, server, tmp_path):
    server.files = {'x.zip': OLD[:-1] + b'?'}
    with pytest.raises(UserError, match=r'/x\.zip: what came has md5 .*, not .*--mirror') as caught:
        get(OLD)
    assert '\n' not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('status', [404, 403, 410])
def test_a_refusal_is_not_tried_again(get, server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(UserError, match=rf'answers {status} .*--mirror or --from'):
        get(OLD)
    assert len(server.requests) == 1


def test_no_server_is_one_clear_error(tmp_path):
    with open_folder(tmp_path) as folder, pytest.raises(UserError, match=r'refused.*6 times'):
        download('http://127.0.0.1:9/x.zip', folder, 'x.zip', _md5(OLD), backoff=0)


def test_other_protocols_are_refused(tmp_path):
    (tmp_path / 'secret').write_bytes(OLD)
    with open_folder(tmp_path / 'root') as folder, pytest.raises(UserError, match='not an http'):
        download(f'file://{tmp_path}/secret', folder, 'x.zip', _md5(OLD))


def test_a_part_that_is_whole_needs_no_server(get, server, tmp_path, monkeypatch):
    """The process was killed after the last byte and before the file had its name."""
    server.files = {'x.zip': OLD}
    with monkeypatch.context() as patch:
        patch.setattr(OpenFolder, 'rename', lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            get(OLD)
    server.statuses = [500] * 10
    assert get(OLD) == OLD


def test_a_part_longer_than_the_file_starts_anew(get, server, tmp_path):
    server.files = {'x.zip': OLD}
    (tmp_path / 'x.zip.part').write_bytes(OLD + b'more')
    assert get(OLD) == OLD


def test_a_full_disk_is_named_before_it_is_full(get, server, tmp_path, monkeypatch):
    server.files = {'x.zip': OLD}
    monkeypatch.setattr(OpenFolder, 'free', lambda _: 1000)
    with pytest.raises(UserError, match=r'needs 300\.0 kB more.* has 1\.0 kB free.*--root'):
        get(OLD)
    assert (tmp_path / 'x.zip.part').read_bytes() == b''


def test_a_link_in_place_of_the_part_is_not_written_through(
    get, server, tmp_path_factory, tmp_path
):
    victim = tmp_path_factory.mktemp('outside') / 'victim'
    victim.write_text('mine')
    for name in ('x.zip.part', 'x.zip.part.json', '.x.zip.part.json.part'):
        (tmp_path / name).symlink_to(victim)
    server.files = {'x.zip': OLD}
    assert get(OLD) == OLD
    assert victim.read_text() == 'mine'
