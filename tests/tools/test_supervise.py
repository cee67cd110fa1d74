"""What the launching scripts make of signals and of the launched processes' mark."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.poolformer_dense.runner import launching

pytestmark = pytest.mark.skipif(shutil.which('bash') is None, reason='there is no bash')
LEAVE = 'import sys; from poolformer_dense.errors import told_launcher; sys.exit(told_launcher(75))'
SHOWN = 'JobId=7\n   JobState={} Reason=None\n   PreemptEligibleTime=2026 PreemptTime={}-11-26'
PREEMPTED = dict(SLURM_JOB_ID='7', SHOWN=SHOWN.format('RUNNING', '2026'))
OVER = PREEMPTED | dict(SHOWN=SHOWN.format('COMPLETING', '2026'))
SIGNALLED = PREEMPTED | dict(SHOWN=SHOWN.format('RUNNING', 'None'))
PREPARED = """set -euo pipefail
. {root}/tools/supervise.sh
scontrol() {{ [ "$1" = requeue ] && echo "scontrol $*" || echo "${{SHOWN:-}}"; }}
forward() {{ echo "$2" > forwarded; kill -USR1 "$1"; }}
launcher() {{
    trap 'stopped=yes' USR1
    # Opened once: a bash that is interrupted while it reads a substitution may lose the signal.
    exec {{clock}}<> <(:)
    touch started
    until [ -n "${{stopped:-}}" ]; do read -r -t 0.05 -u "$clock" || true; done
    {how}
}}
code=0
"""


@pytest.fixture
def bash(root, tmp_path):
    def start(script, how='true', **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith('SLURM')}
        return subprocess.Popen(
            ['bash', '-c', PREPARED.format(root=root, how=how) + script],
            cwd=tmp_path, env=environment | variables, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            # Shells have it ignored in what they start in the background.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    return start


def test_the_mark_is_in_the_first_folder_that_takes_it(bash, tmp_path):
    (tmp_path / 'file').touch()
    done = bash('mark=$(mark_in "$PWD/missing" "$PWD/file" "$PWD"); echo "$mark"; cat "$mark"')
    printed, said = done.communicate()
    path, content = printed.split()
    assert (Path(path).parent, content) == (tmp_path, '000')
    assert (done.returncode, said) == (0, '')


def test_where_no_folder_takes_it_a_line_says_so_at_the_start(bash, tmp_path):
    done = bash('mark=$(mark_in "$PWD/missing" "$PWD/nor this"); echo started')
    printed, said = done.communicate()
    assert (done.returncode, printed) == (2, '')
    assert said.startswith('error: no file can be written in ')
    assert f'{tmp_path}/missing, {tmp_path}/nor this' in said
    assert said.count('\n') == 1


def test_no_temporary_folder_still_ends_with_the_code(root, bash, tmp_path, monkeypatch):
    """The script picks another folder; nothing is lost or started again."""
    env = dict(PYTHONPATH=str(root), TMPDIR=str(tmp_path / 'missing'))
    script = f"""
mark=$(mark_in "$TMPDIR" "$PWD")
supervise "$mark" forward {shutil.which('python')} -c '{LEAVE}' || code=$?
exit "$code" """
    done = bash(script, **env)
    assert done.wait(launching.DEADLINE) == 75, done.stderr.read()
    assert not list(tmp_path.glob('.preempted.*'))


def test_a_mark_on_a_full_disk_is_written(root, bash, tmp_path):
    """What is written at the start holds the room."""
    mount = ['mount', '-t', 'tmpfs', '-o', 'size=8k', 'tmpfs', '.']
    (tmp_path / 'disk').mkdir()
    place = tmp_path / 'disk'
    if subprocess.run(mount, cwd=place, capture_output=True).returncode:
        pytest.skip('can not mount a tmpfs here')
    try:
        full = 'cat /dev/zero > "$PWD/disk/ballast" 2>/dev/null || true'
        script = f"""
mark=$(mark_in "$PWD/disk")
{full}
supervise "$mark" forward {shutil.which('python')} -c '{LEAVE}' || code=$?
exit "$code" """
        done = bash(script, PYTHONPATH=str(root))
        assert done.wait(launching.DEADLINE) == 75, done.stderr.read()
        # Where there is no room from the start, another folder is taken.
        done = bash(f'{full}; mark_in "$PWD/disk" "$PWD"')
        assert Path(done.communicate()[0].strip()).parent == tmp_path
    finally:
        subprocess.run(['umount', place], check=True)


@pytest.mark.parametrize(
    ('number', 'how', 'job', 'code', 'told'),
    [
        (signal.SIGUSR1, 'echo 075', dict(SLURM_JOB_ID='7'), 75, 'scontrol requeue 7\n'),
        (signal.SIGUSR1, 'echo 075', dict(SLURM_JOB_ID='7', SLURM_PROCID='0'), 75,
         'scontrol requeue 7\n'),
        # torchrun on the second node of a job: the first queues it again.
        (signal.SIGUSR1, 'echo 075', dict(SLURM_JOB_ID='7', SLURM_PROCID='1'), 75, ''),
        (signal.SIGTERM, 'echo 075', dict(SLURM_JOB_ID='7'), 143, ''),
        (signal.SIGTERM, 'echo 143', dict(SLURM_JOB_ID='7'), 143, ''),
        # In a time of grace; when that is over; after scancel --signal.
        (signal.SIGTERM, 'echo 143', PREEMPTED, 143, 'scontrol requeue 7\n'),
        (signal.SIGTERM, 'echo 143', OVER, 143, ''),
        (signal.SIGTERM, 'echo 143', SIGNALLED, 143, ''),
        (signal.SIGTERM, 'echo 075', {}, 75, ''),
        (signal.SIGUSR1, 'echo 075', {}, 75, ''),
        (signal.SIGINT, 'echo 130', dict(SLURM_JOB_ID='7'), 130, ''),
    ],
)  # fmt: skip
def test_a_batch_job_is_queued_again_after_sigusr1_alone(
    bash, tmp_path, number, how, job, code, told
):
    script = 'supervise "$(mark_in "$PWD")" forward launcher || code=$?; exit "$code"'
    process = bash(script, how=f'{how} > "$PREEMPTED_FILE"', **job)
    launching.wait_for((tmp_path / 'started').exists, process)
    process.send_signal(number)
    printed, said = process.communicate(timeout=launching.DEADLINE)
    assert (process.returncode, printed, said) == (code, told, '')
    assert (tmp_path / 'forwarded').read_text().strip() == number.name.removeprefix('SIG')
    assert not list(tmp_path.glob('.preempted.*'))


@pytest.mark.parametrize(
    ('number', 'code'), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_before_torchrun_has_processes_it_ends_with_their_code(root, tmp_path, number, code):
    """There is nothing to save then; the signal is not lost."""
    stand_in = tmp_path / 'python'
    stand_in.write_text(f"""#!/bin/bash
[ "$2" = torch.distributed.run ] || exit 0
sleep {launching.DEADLINE} &  # not one of them
trap "kill $!; exit 1" TERM
until grep -q sleep /proc/$!/comm; do :; done
touch {tmp_path}/started
wait
""")
    stand_in.chmod(0o755)
    environment = {k: v for k, v in os.environ.items() if not k.startswith('SLURM')}
    process = subprocess.Popen(
        [root / 'tools/launch.sh', '2', 'train.py'],
        cwd=tmp_path,
        env=environment | dict(VIRTUAL_ENV='1', PATH=f'{tmp_path}:{os.environ["PATH"]}'),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    launching.wait_for((tmp_path / 'started').exists, process)
    process.send_signal(number)
    assert process.wait(launching.DEADLINE) == code
