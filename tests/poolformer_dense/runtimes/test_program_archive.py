"""A .pt2 archive is read without running anything that it holds, or refused."""

from __future__ import annotations

import io
import json
import pickle
import zipfile

import pytest
import torch
from torch import nn

from backbones.checkpoints.refusals import Refused
from poolformer_dense.errors import UserError
from poolformer_dense.runtimes.program_archive import checked, stripped
from poolformer_dense.runtimes.runtime import open_program

DESCRIPTION = dict(producer='poolformer-dense 1', classes=[])
MODEL, SAMPLE = 'archive/models/model.json', 'archive/data/sample_inputs/model.pt'
WEIGHTS = 'archive/data/weights/model_weights_config.json'


class _Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, image):
        return dict(labels=image.float().mean((2, 3)) * self.weight + image.shape[2] * 2)


@pytest.fixture(scope='module')
def archive():
    height = torch.export.Dim('height', min=4, max=64)
    program = torch.export.export(
        _Doubled(), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), dynamic_shapes=({2: height},)
    )
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={'metadata.json': json.dumps(DESCRIPTION)})
    return file.getvalue()


def _changed(archive, **members):
    """The archive with other contents of members; the names have __ for / and for the dot _."""
    packed = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(archive)) as before, zipfile.ZipFile(packed, 'w') as after:
        for entry in before.infolist():
            content = before.read(entry)
            change = members.pop(entry.filename, None)
            after.writestr(entry.filename, change(content) if change else content)
        for name, make in members.items():
            after.writestr(name, make(b''))
    return packed.getvalue()


def _edited(archive, edit):
    def change(content):
        model = json.loads(content)
        edit(model)
        return json.dumps(model).encode()

    return _changed(archive, **{MODEL: change})


def test_what_is_written_is_read(archive, tmp_path):
    path = tmp_path / 'model.pt2'
    path.write_bytes(stripped(archive))
    runtime = open_program(path)
    assert runtime.description == DESCRIPTION
    image = torch.full((1, 3, 20, 8), 7, dtype=torch.uint8).numpy()
    assert runtime.run(image)['labels'].tolist() == [[47.0] * 3]


def test_an_archive_has_no_pickle_and_no_path_of_a_source_file(archive):
    assert b'test_program_archive.py' in archive
    assert b'test_program_archive.py' not in stripped(archive)
    with zipfile.ZipFile(io.BytesIO(stripped(archive))) as file:
        assert file.read(SAMPLE) == b''


def _nodes(model):
    return model['graph_module']['graph']['nodes']


class _Runs:
    def __reduce__(self):
        return print, ('run',)


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda m: _nodes(m)[0].update(target='torch.hub.load'), r"it calls 'torch\.hub\.load'"),
        (lambda m: _nodes(m)[0].update(target='#shell'), 'it calls'),
        (lambda m: _nodes(m)[0].update(target='math.exp'), 'it calls'),
        (
            lambda m: _nodes(m)[0].update(target='torch.ops.aten.from_file.default'),
            'takes a text',
        ),
        (lambda m: _nodes(m)[0].update(metadata=dict(source_fn_stack='a,torch.load')), 'metadata'),
        (
            lambda m: _nodes(m)[0]['inputs'].append(
                dict(name='x', arg=dict(as_operator='torch.load'), kind=1)
            ),
            'operator, which is code',
        ),
        (
            lambda m: m['graph_module']['graph']['sym_int_values'].update(
                x=dict(as_expr=dict(expr_str="__import__('os').system('true')", hint=None))
            ),
            'where a size should be',
        ),
        (
            lambda m: m['graph_module']['graph']['sym_int_values'].update(
                x=dict(as_expr=dict(expr_str='9**9**9', hint=None))
            ),
            'where a size should be',
        ),
        *(
            (
                lambda m, text=text: m['graph_module']['graph']['sym_int_values'].update(
                    x=dict(as_expr=dict(expr_str=text, hint=None))
                ),
                'where a size should be' if text.startswith('Pow') else 'no whole program',
            )
            for text in ('Pow(9, Pow(9, Pow(9, 9)))', 'Pow(Pow(9, 9), 9)', 'Pow(9, 99999)', '9999!')
        ),
        (lambda m: m.update(guards_code=["L['image'].data.save()"]), 'where a size should be'),
        (lambda m: m['range_constraints'].update({'open()': {}}), 'where a size should be'),
        (
            lambda m: m['graph_module']['module_call_graph'][0]['signature'].update(
                in_spec='[1, {"type": "collections.defaultdict", "context": "{}"}]'
            ),
            'names the type',
        ),
    ],
)
def test_what_would_run_something_is_refused(archive, edit, message):
    with pytest.raises(Refused, match=message):
        checked(_edited(stripped(archive), edit))


@pytest.mark.parametrize(
    ('members', 'message'),
    [
        ({SAMPLE: lambda _: pickle.dumps(_Runs())}, 'neither a zip nor a pickle'),
        ({'archive/data/aotinductor/model/x.so': lambda _: b'\x7fELF'}, 'an entry named'),
        ({WEIGHTS: lambda c: c.replace(b'"use_pickle": false', b'"use_pickle": true')}, 'pickled'),
        ({MODEL: lambda _: b'{'}, 'no whole program'),
        ({MODEL: lambda _: b'[]'}, 'no whole program'),
        ({WEIGHTS: lambda _: b'[1'}, 'no whole program'),
    ],
)
def test_members_that_no_export_has_are_refused(archive, members, message):
    with pytest.raises(Refused, match=message):
        checked(_changed(stripped(archive), **members))


def test_a_pickle_that_runs_code_is_refused(archive, tmp_path):
    sample = io.BytesIO()
    torch.save(_Runs(), sample)
    path = tmp_path / 'model.pt2'
    path.write_bytes(_changed(stripped(archive), **{SAMPLE: lambda _: sample.getvalue()}))
    with pytest.raises(UserError, match=r'model.pt2 was not loaded: .*--unsafe-load'):
        open_program(path)


def test_what_torch_wrote_is_read_only_if_it_is_asked_for(archive, tmp_path):
    path = tmp_path / 'model.pt2'
    path.write_bytes(archive)
    with pytest.raises(UserError, match='metadata'):
        open_program(path)
    assert open_program(path, unsafe_load=True).description == DESCRIPTION
