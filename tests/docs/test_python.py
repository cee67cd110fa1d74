"""The code of the Python page, of the backbone's page and of the notebook runs as it stands."""

from __future__ import annotations

import json
import textwrap

import pytest

from poolformer_dense.measure.shapes import draw_scene
from poolformer_dense.predict.results import write_image
from tests.tiny_models import tiny_config, write_weights

# An import of it takes a second, and shows nothing without a notebook.
_NO_DISPLAY = """
import sys, types
sys.modules['IPython.display'] = types.SimpleNamespace(display=print)
"""


@pytest.fixture
def execute(run, root, tmp_path):
    """Run a program as a user's, in a folder without this project; return what it prints."""

    def execute_code(code):
        (tmp_path / 'program.py').write_text(code)
        done = run(tmp_path / 'program.py', cwd=tmp_path, env={'PYTHONPATH': str(root)})
        assert done.returncode == 0, done.stderr
        return done.stdout

    return execute_code


def _program(blocks):
    return '\n'.join(text for language, text in blocks if language == 'python')


@pytest.fixture
def files(root, shapes, tmp_path):
    """What the Python page's code finds in its folder."""
    cfg = tiny_config(root, 'retinanet')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f'{shapes}/coco/'
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f'{shapes}/coco/annotations/instances_val2017.json'
    cfg.pop('prepare_data', None)
    cfg.dump(tmp_path / 'my_config.py')
    write_weights(cfg, tmp_path / 'weights.pth')
    for name in ('street.jpg', 'shots/a.jpg', 'shots/more/b.png'):
        write_image(tmp_path / name, draw_scene((1,)).image)
    return tmp_path


def test_the_python_pages_predictions_and_config(code_blocks, execute, files):
    loading, predicting, _, (_, inherited) = code_blocks('python.md')
    execute(_program([loading, predicting]))
    assert sorted(path.name for path in (files / 'drawn').iterdir()) == ['a.jpg', 'b.png']
    assert json.loads((files / 'found.json').read_text())[0]['image_id'] == 1
    (files / 'mine.py').write_text(inherited)
    assert execute(
        'from poolformer_dense.config.load import load_config\n'
        'cfg = load_config("mine.py")\n'
        'print(cfg.model.backbone.arch, cfg.train_dataloader.batch_size)\n'
    ).endswith('s12 4\n')


@pytest.mark.slow
def test_the_python_pages_training(code_blocks, execute, files):
    training = code_blocks('python.md')[2]
    body = textwrap.indent(f'import poolformer_dense\n{_program([training])}', '    ')
    execute(f'if __name__ == "__main__":\n{body}')
    assert (files / 'runs/first/epoch_1.pth').is_file()
    assert (files / 'model.pt2').is_file()


def test_the_backbones_page_in_plain_torch(code_blocks, execute):
    printed = execute(_program(code_blocks('backbone.md')))
    assert '(64, 128, 320, 512)\n(4, 8, 16, 32)' in printed


@pytest.mark.slow
def test_the_notebook(root, execute, tmp_path):
    notebook = json.loads((root / 'docs/shapes.ipynb').read_text())
    cells = [''.join(c['source']) for c in notebook['cells'] if c['cell_type'] == 'code']
    assert cells[0] == 'IMAGES, EPOCHS = 240, 12'
    body = textwrap.indent('\n'.join(['IMAGES, EPOCHS = 12, 1', *cells[1:]]), '    ')
    printed = execute(_NO_DISPLAY + 'if __name__ == "__main__":\n' + body)
    assert ' detections agree' in printed
    assert (tmp_path / 'shapes.onnx').stat().st_size > 1e6
