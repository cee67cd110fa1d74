"""tools/browse_data.py as a user runs it."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(('name', 'layout'), [('mask_rcnn', 'coco'), ('fpn', 'ade')])
def test_pictures_and_their_count(run, root, shapes, tmp_path, name, layout):
    config = root / f'configs/demo/{name}_poolformer_s12.py'
    done = run(
        'browse_data.py', config, 'out', '--number', 2,
        '--cfg-options', f'data_root={shapes}/{layout}',
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '2 pictures in out'
    assert len(list((tmp_path / 'out').iterdir())) == 2
    # Pictures only: no log, no folder of a run.
    assert [path.name for path in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['nowhere.py', 'out'], 'config nowhere.py does not exist'),
        (['{config}', 'out'], 'no data at '),
        (['{config}', 'out', '--cfg-options', 'data_rot=x'], 'nearest valid key is'),
        (['{config}', 'out', '--cfg-options', 'data_root'], 'key=value'),
    ],
)
def test_errors_are_one_line(run, root, tmp_path, arguments, message):
    config = str(root / 'configs/demo/retinanet_poolformer_s12.py')
    done = run('browse_data.py', *[a.format(config=config) for a in arguments], cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out').exists()
