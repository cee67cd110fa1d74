"""What a person at a terminal sees of a training."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path


def _screen(printed: str) -> list[str]:
    """Return the lines that a terminal shows in the end."""
    rows, row = [''], 0
    for piece in re.findall(r'\x1b\[[\d;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+', printed):
        if piece == '\n':
            row += 1
            rows += [''] * (row == len(rows))
        elif piece == '\x1b[2K':
            rows[row] = ''
        elif piece == '\x1b[1A':
            row -= 1
        elif piece[0] not in '\x1b\r':
            rows[row] += piece
    return rows


def _train_at_a_terminal(root: Path, folder: Path, *options: str) -> tuple[int, str]:
    screen, terminal = pty.openpty()
    command = [sys.executable, root / 'tools/train.py', *options]
    process = subprocess.Popen(
        command, cwd=folder, stdin=terminal, stdout=terminal, stderr=terminal,
        env=os.environ | dict(TERM='xterm', COLUMNS='100'), start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    printed = b''
    while True:
        try:
            printed += os.read(screen, 1 << 16)
        except OSError:  # the last process has closed it
            break
    os.close(screen)
    return process.wait(timeout=60), printed.decode()


def test_a_live_line_tells_of_a_training(root, shapes, tmp_path):
    code, printed = _train_at_a_terminal(
        root, tmp_path, str(root / 'configs/demo/fpn_poolformer_s12.py'), '--work-dir', 'w',
        '--cfg-options', f'data_root={shapes}/ade', 'train_cfg.max_iters=4',
        'train_cfg.val_interval=2', 'default_hooks.logger.interval=1',
        'train_dataloader.batch_size=2',
    )  # fmt: skip
    assert code == 0, printed
    live = r'training  3/4  loss \d\.\d{3}  0:00:\d\d left  \d+\.\d images/s  lr \d\.\de-0\d'
    assert re.search(live, printed)
    assert re.search(r'validation  4/4  0:00:00 left  \d+\.\d images/s', printed)
    assert '\x1b[?25l' not in printed  # the cursor stays
    lines = _screen(printed)
    assert sum(line.startswith('iteration ') for line in lines) == 2
    assert sum(line.startswith('Iter(val) [4/4]    aAcc: ') for line in lines) == 2
    hidden = (
        'avg_non_ignore',
        'draw is False',
        'prefix is not set',
        'OneDL',
        'images/s',
        'Iter(train)',
    )
    assert [text for text in hidden if any(text in line for line in lines)] == []
    assert len(lines) < 50
    [log] = (tmp_path / 'w').glob('*/*.log')
    written = log.read_text()
    assert 'Iter(train) [4/4]  lr: ' in written
    assert [text for text in hidden[:3] if text not in written] == []
