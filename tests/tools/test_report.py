"""`tools/report.py` as a user runs it."""

from __future__ import annotations

from tests.poolformer_dense.report.report_runs import train_record, val_record, write_session


def test_one_gets_its_page_and_several_are_compared(run, tmp_path):
    for name in 'abc':
        write_session(tmp_path / name, [train_record(10), val_record(1, 0.5)])
    done = run('report.py', 'a', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'a/report.html'
    page = (tmp_path / 'a/report.html').read_text()
    assert '<h1>Training report: a</h1>' in page
    assert 'unreadable' not in page
    done = run('report.py', 'a', 'b', 'c', '--out', 'pages/abc.html', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert 'Comparison of 3 trainings' in (tmp_path / 'pages/abc.html').read_text()


def test_a_wrong_folder_is_one_line(run, tmp_path):
    done = run('report.py', 'none', cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == (
        'error: none is not a folder; name the work directory of a training'
    )
