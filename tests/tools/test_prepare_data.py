"""The tool as a user runs it: another process, another folder, one line for each error."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from poolformer_dense.measure.shapes import write_ade20k


@pytest.fixture(scope='module')
def ade20k(tmp_path_factory) -> Path:
    """A tree with the published numbers of files; two images, under many names."""
    folder = tmp_path_factory.mktemp('shared') / 'ADEChallengeData2016'
    write_ade20k(folder, num_train=1, num_val=1)
    for kind, suffix in (('images', 'jpg'), ('annotations', 'png')):
        for split, count in (('training', 20_210), ('validation', 2000)):
            first = folder / kind / split / f'00000001.{suffix}'
            for number in range(2, count + 1):
                os.link(first, first.with_name(f'{number:08d}.{suffix}'))
    return folder


def test_a_shared_tree_is_linked_checked_and_found_again(run, ade20k, tmp_path):
    done = run('prepare_data.py', 'ade20k', '--from', ade20k, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'training/*.jpg: 20,210 files' in done.stdout
    assert (tmp_path / 'data/ade/ADEChallengeData2016').resolve() == ade20k
    again = run('prepare_data.py', 'ade20k', cwd=tmp_path)
    assert again.stdout.strip() == 'ADE20K is complete in data: nothing to do'
    verified = run('prepare_data.py', 'ade20k', '--verify-only', cwd=tmp_path)
    assert verified.returncode == 0
    assert verified.stdout.endswith('ADE20K is complete in data\n')


def test_verify_only_writes_nothing_and_fails_when_there_is_nothing(run, tmp_path):
    done = run('prepare_data.py', 'coco', '--verify-only', '--root', 'none', cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(r'none/coco/train2017/\*\.jpg: 0 of 118,287 files', done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def mirror():
    """A server that has no file but one whose bytes never come; its address and a flag for that."""
    asked, leave = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if 'ADE' not in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header('Content-Length', '1000')
            self.end_headers()
            asked.set()
            leave.wait(60)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(('127.0.0.1', 0), Handler) as listener:
        thread = threading.Thread(target=listener.serve_forever, kwargs={'poll_interval': 0.01})
        thread.start()
        yield f'http://127.0.0.1:{listener.server_port}', asked
        leave.set()
        listener.shutdown()
        thread.join()


def test_an_error_is_one_line(run, mirror, tmp_path):
    (tmp_path / 'root').mkdir()
    done = run('prepare_data.py', 'coco', '--from', 'none', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, 'error: --from none does not exist\n')
    (tmp_path / 'archives').mkdir()
    (tmp_path / 'archives/ADEChallengeData2016.zip').write_text('no zip')
    done = run('prepare_data.py', 'ade20k', '--from', 'archives', cwd=tmp_path)
    assert done.returncode == 2
    assert 'ADEChallengeData2016.zip has md5' in done.stderr.splitlines()[-1]


def test_ctrl_c_says_that_the_same_command_resumes(root, mirror, tmp_path):
    url, asked = mirror
    process = subprocess.Popen(
        [sys.executable, root / 'tools/prepare_data.py', 'ade20k', '--mirror', url],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell makes what it starts in the background ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert asked.wait(60)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.endswith('interrupted; run the same command again to resume\n')
    assert 'Traceback' not in errors
