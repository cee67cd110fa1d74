"""Small archives laid out as the published ones, and a server with the faults of real ones."""

from __future__ import annotations

import hashlib
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import pytest

from poolformer_dense.data.archives import DATASETS, Dataset
from poolformer_dense.measure.shapes import write_ade20k, write_coco


@dataclass
class FileServer:
    """What a server has and how it behaves; tests change the attributes while it runs.

    Attributes:
        files: Contents by name.
        url: Its address.
        ranges: Whether it honours Range.
        conditional: Whether it honours If-Range.
        validators: Headers that tell the version; ``{md5}`` stands for the checksum.
        cuts: For each request to come, after how many bytes the connection is cut.
        statuses: For each request to come, the error it is answered with.
        hold: With a cut, wait here before it, and tell by ``held``.
        requests: Name, Range and bytes sent of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    url: str = ''
    ranges: bool = True
    conditional: bool = True
    validators: dict[str, str] = field(default_factory=lambda: {'ETag': '"{md5}"'})
    cuts: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    held: threading.Event = field(default_factory=threading.Event)
    requests: list[list] = field(default_factory=list)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.rpartition('/')[2]
        asked = handler.headers.get('Range')
        request = [name, asked, 0]
        self.requests.append(request)
        if self.statuses or name not in self.files:
            handler.send_error(self.statuses.pop(0) if self.statuses else 404)
            return
        content = self.files[name]
        md5 = hashlib.md5(content).hexdigest()
        versions = {key: value.format(md5=md5) for key, value in self.validators.items()}
        condition = handler.headers.get('If-Range')
        stale = self.conditional and condition and condition not in versions.values()
        start = int(asked[6:-1]) if asked and self.ranges and not stale else 0
        if start >= len(content) > 0:
            handler.send_error(416)
            return
        body = content[start:]
        if self.cuts:
            body = body[: self.cuts.pop(0)]
        request[2] = len(body)  # noted first: whoever has the last byte may look at once
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header('Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}')
        for key, value in versions.items():
            handler.send_header(key, value)
        handler.send_header('Content-Length', str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(body)
        if self.hold and len(body) < len(content) - start:
            handler.wfile.flush()
            self.held.set()
            self.hold.wait(60)


@pytest.fixture
def server() -> Iterator[FileServer]:
    """A real HTTP server on this machine."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as listener:
        state.url = f'http://127.0.0.1:{listener.server_port}'
        thread = threading.Thread(target=listener.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield state
        if state.hold:
            state.hold.set()
        listener.shutdown()
        thread.join()


@pytest.fixture(scope='session')
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpacked data sets as they must lie below --root, with files beside those that count."""
    root = tmp_path_factory.mktemp('trees')
    write_coco(root / 'coco', num_train=7, num_val=3)
    (root / 'coco/annotations/captions_train2017.json').write_text('{"annotations": []}')
    write_ade20k(root / 'ade/ADEChallengeData2016', num_train=7, num_val=3)
    (root / 'ade/ADEChallengeData2016/objectInfo150.txt').write_text('wall\n')
    return root


@pytest.fixture(scope='session')
def archives(trees: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the zip files of `trees`."""
    folder = tmp_path_factory.mktemp('archives')
    for dataset in DATASETS.values():
        for archive in dataset.archives:
            with ZipFile(folder / archive.name, 'w', ZIP_DEFLATED) as file:
                for path in sorted((trees / archive.folder).rglob('*')):
                    file.write(path, path.relative_to(trees / archive.into))
    return folder


@pytest.fixture(scope='session')
def small(trees: Path, archives: Path) -> Callable[..., Dataset]:
    """The rows of the published data sets, with numbers and addresses of the small ones."""

    def row(name: str, url: str = 'http://127.0.0.1:9') -> Dataset:
        dataset = DATASETS[name]
        rows = []
        for archive in dataset.archives:
            content = (archives / archive.name).read_bytes()
            top = trees / archive.folder
            rows.append(
                replace(
                    archive,
                    url=f'{url}/{archive.name}',
                    md5=hashlib.md5(content).hexdigest(),
                    size=len(content),
                    files=tuple(
                        replace(f, count=len(list((top / f.folder).glob(f.pattern))))
                        for f in archive.files
                    ),
                )
            )
        return replace(dataset, archives=tuple(rows))

    return row


@pytest.fixture(scope='session')
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The files below a folder, hidden ones and links apart."""

    def read(folder: Path) -> dict[str, bytes]:
        return {
            str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*'))
            if path.is_file() and not path.is_symlink() and not path.name.startswith('.')
        }

    return read


@pytest.fixture
def file_limit(capsys: pytest.CaptureFixture) -> Callable[[int], AbstractContextManager]:
    """A context in which no file grows beyond so many bytes, as on a full disk.

    What is printed is captured in memory: a file of pytest's would be limited, too.
    """

    @contextmanager
    def limit(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit
