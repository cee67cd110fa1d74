"""The page of results is what its generator makes, and its figures are true."""

from __future__ import annotations

import ast
import copy
from math import prod

import mmengine
import pytest

from backbones import MetaFormer
from poolformer_dense.errors import UserError
from poolformer_dense.measure.analysis import count_macs
from poolformer_dense.measure.results_page import (
    METAFILE,
    PAGE,
    SMALL,
    format_results,
    load_metafile,
    measure_costs,
    read_docstring,
    write_metafile,
)

QUICK = [
    'retinanet_poolformer_s12',
    'mask_rcnn_caformer_s18',
    'fpn_convformer_s18',
    'fpn_poolformer_s12_camvid',
]
# arXiv 2111.11418, Tables 3 and 4; mmsegmentation's metafile.
PUBLISHED = {
    'retinanet_poolformer_s12': {'box AP': 36.2},
    'retinanet_poolformer_s24': {'box AP': 38.9},
    'retinanet_poolformer_s36': {'box AP': 39.5},
    'mask_rcnn_poolformer_s12': {'box AP': 37.3, 'mask AP': 34.6},
    'mask_rcnn_poolformer_s24': {'box AP': 40.1, 'mask AP': 37.0},
    'mask_rcnn_poolformer_s36': {'box AP': 41.0, 'mask AP': 37.7},
    'fpn_poolformer_s12': {'mIoU': 37.2},
    'fpn_poolformer_s24': {'mIoU': 40.3},
    'fpn_poolformer_s36': {'mIoU': 42.0},
    'fpn_poolformer_m36': {'mIoU': 42.4},
    'fpn_poolformer_m48': {'mIoU': 42.7},
    'fpn_poolformer_s12_plain': {'mIoU': 36.68},
    'fpn_poolformer_s24_plain': {'mIoU': 40.12},
    'fpn_poolformer_s36_plain': {'mIoU': 41.61},
    'fpn_poolformer_m36_plain': {'mIoU': 41.95},
    'fpn_poolformer_m48_plain': {'mIoU': 42.43},
    'upernet_caformer_s18': {'mIoU': 48.9},
}


@pytest.fixture
def metafile(root) -> dict:
    return load_metafile(root)


@pytest.fixture
def project(tmp_path, metafile):
    """A repository of one model, with a metafile and a config."""
    model = next(m for m in metafile['Models'] if m['Name'] == 'mask_rcnn_poolformer_s12')
    (tmp_path / 'configs').mkdir()
    (tmp_path / METAFILE).write_text('# Said first.\n# Then this.\nModels: []\n')
    (tmp_path / model['Config']).write_text(
        '"""A model.\n\nCommand: tools/train.py x.py\nHardware: one GPU. Ours: box AP 37.1.\n"""\n'
    )
    [collection] = [c for c in metafile['Collections'] if c['Name'] == model['In Collection']]
    return tmp_path, {'Collections': [collection], 'Models': [model]}


def test_the_page_is_what_the_generator_makes(root, metafile):
    assert (root / PAGE).read_text() == format_results(root, metafile), 'run tools/make_results.py'


def test_the_metafile_lists_every_leaf_config(root, metafile):
    folders = ('', 'beyond', 'small')
    leaves = [path for folder in folders for path in (root / 'configs' / folder).glob('*.py')]
    listed = [model['Config'] for model in metafile['Models']]
    assert sorted(listed) == sorted(str(path.relative_to(root)) for path in leaves)
    for model in metafile['Models']:
        assert model['Config'].endswith(f'/{model["Name"]}.py')
    collections = [collection['Name'] for collection in metafile['Collections']]
    assert {model['In Collection'] for model in metafile['Models']} == set(collections)


def test_the_index_imports_the_metafile(root):
    assert mmengine.load(root / 'model-index.yml') == {'Import': [METAFILE]}


def test_published_numbers_are_the_sources_and_the_docstrings(root, metafile):
    found = {}
    for model in metafile['Models']:
        if model['Config'].startswith('configs/small/'):
            continue
        results = model.get('Results', [])
        text = ' '.join(ast.get_docstring(ast.parse((root / model['Config']).read_text())).split())
        for result in results:
            found.setdefault(model['Name'], {}).update(result['Metrics'])
            assert result['Source'] in text
        numbers = [str(n) for n in found.get(model['Name'], {}).values()]
        assert f': {" / ".join(numbers) or "none for this recipe"}' in text
    assert found == PUBLISHED


def test_rows_tell_what_the_metafile_and_the_docstring_say(project):
    folder, metafile = project
    metafile['Models'][0]['Metadata'].update(Parameters=31_570_608, FLOPs=213_950_000_000)
    row = format_results(folder, metafile).splitlines()[-1]
    assert row == (
        '| PoolFormer-S12 | 31.57 | 213.9 | box AP 37.3, mask AP 34.6 (arXiv 2111.11418, Table 3) '
        '| box AP 37.1 | `tools/train.py x.py` |'
    )
    del metafile['Models'][0]['Results']
    assert '| none |' in format_results(folder, metafile).splitlines()[-1]


def test_what_we_have_measured_has_a_number_for_each_seed(metafile, project):
    folder, _ = project
    [model] = [m for m in metafile['Models'] if m['Name'] == 'retinanet_poolformer_s12_bccd']
    [collection] = [c for c in metafile['Collections'] if c['Name'] == model['In Collection']]
    model['Results'] = [
        dict(Metrics={'box AP': ap, 'box AP50': ap + 30}, Seed=i)
        for i, ap in enumerate((46, 47.25))
    ]
    model['Metadata'] |= {'Minutes': 40, 'Training Memory (GB)': 1.6}
    page = format_results(folder, dict(Collections=[collection], Models=[model]))
    assert page.splitlines()[-1] == (
        '| PoolFormer-S12 | 13.96 | 5.1 | 46.0, 47.2 | 76.0, 77.2 | 40 | 1.6 '
        '| `retinanet_poolformer_s12_bccd` |'
    )


def test_a_model_without_figures_is_named(project):
    folder, metafile = project
    del metafile['Models'][0]['Metadata']['FLOPs']
    with pytest.raises(UserError, match=r'mask_rcnn_poolformer_s12.*--measure'):
        format_results(folder, metafile)


@pytest.mark.parametrize('part', ['Command', 'Hardware', 'Ours'])
def test_an_incomplete_docstring_is_named(project, part):
    folder, metafile = project
    config = folder / metafile['Models'][0]['Config']
    config.write_text(config.read_text().replace(f'{part}:', 'Else:'))
    with pytest.raises(UserError, match=rf'mask_rcnn_poolformer_s12\.py.*"{part}'):
        read_docstring(config)


def test_a_missing_metafile_is_named(tmp_path):
    with pytest.raises(UserError, match=r'metafile\.yml does not exist'):
        load_metafile(tmp_path)


def test_writing_keeps_the_comment_and_the_order(project):
    folder, metafile = project
    write_metafile(folder, metafile)
    text = (folder / METAFILE).read_text()
    assert text.startswith('# Said first.\n# Then this.\nCollections:\n- Name: Mask R-CNN\n')
    assert load_metafile(folder) == metafile


def test_measuring_anew_changes_nothing_but_figures(project, root, metafile):
    folder, _ = project
    before = (root / METAFILE).read_text()
    (folder / METAFILE).write_text(before)
    write_metafile(folder, copy.deepcopy(metafile))
    assert (folder / METAFILE).read_text() == before


def test_macs_of_retinanet_by_hand(root):
    levels = [(100, 168), (50, 84), (25, 42), (13, 21), (7, 11)]  # of 800 x 1344 pixels
    tokens = [prod(level) for level in levels]
    backbone = MetaFormer('poolformer_s12', out_indices=(1, 2, 3)).to('meta')
    pyramid = sum(n * dim * 256 for n, dim in zip(tokens, (128, 320, 512), strict=False))
    pyramid += sum(tokens[:3]) * 9 * 256**2 + tokens[3] * 9 * 512 * 256 + tokens[4] * 9 * 256**2
    head = sum(tokens) * 9 * 256 * (8 * 256 + 9 * 80 + 9 * 4)
    expected = sum(count_macs(backbone, (800, 1344))) + pyramid + head
    assert measure_costs(root / 'configs/retinanet_poolformer_s12.py')['FLOPs'] == expected


def test_macs_of_a_cascade_by_hand(root):
    def two_stage(name):
        return measure_costs(root / f'configs/{name}.py')['FLOPs']

    shared = 256 * 7**2 * 1024 + 1024**2
    box, cascaded_box = shared + 1024 * (81 + 4 * 80), shared + 1024 * (81 + 4)
    mask = 4 * 9 * 256**2 * 14**2 + 256**2 * 28**2 + 256 * 80 * 28**2
    extra = 1000 * (3 * cascaded_box - box) + 100 * 2 * mask
    single = two_stage('mask_rcnn_poolformer_s12')
    assert two_stage('beyond/cascade_mask_rcnn_poolformer_s12') - single == extra


def test_parameters_are_those_of_the_whole_model(root):
    assert measure_costs(root / 'configs/fpn_poolformer_s12.py')['Parameters'] == 15_669_846


def _is_true(root, metafile, model) -> bool:
    sizes = {c['Name']: c['Metadata'].get(SMALL) for c in metafile['Collections']}
    costs = measure_costs(root / model['Config'], sizes[model['In Collection']])
    return costs.items() <= model['Metadata'].items()


@pytest.mark.parametrize('name', QUICK)
def test_figures_of_the_metafile(root, metafile, name):
    [model] = [m for m in metafile['Models'] if m['Name'] == name]
    assert _is_true(root, metafile, model)


@pytest.mark.slow
def test_all_figures_of_the_metafile(root, metafile):
    wrong = [m['Name'] for m in metafile['Models'] if not _is_true(root, metafile, m)]
    assert wrong == []
