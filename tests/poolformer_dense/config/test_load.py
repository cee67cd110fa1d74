"""What options of the command line make of a config."""

from __future__ import annotations

import os

import pytest

from poolformer_dense.config.load import dump_predictions, load_config
from poolformer_dense.config.walk import evaluators_of, type_name
from poolformer_dense.errors import UserError

EVALUATORS = {
    'one': lambda metric: metric,
    'a list': lambda metric: [metric, dict(metric, prefix='again')],
    'with a type': lambda metric: dict(type='Evaluator', metrics=[metric]),
    'with a type, one metric': lambda metric: dict(type='Evaluator', metrics=metric),
}


@pytest.mark.parametrize('form', EVALUATORS)
@pytest.mark.parametrize(
    ('config', 'out', 'writer'),
    [('fpn', 'maps', 'DumpLabelMaps'), ('retinanet', 'found.pkl', 'DumpDetResults')],
)
def test_predictions_are_written_beside_any_evaluator(root, config, out, writer, form):
    cfg = load_config(str(root / f'configs/demo/{config}_poolformer_s12.py'))
    cfg.test_evaluator = EVALUATORS[form](cfg.test_evaluator.to_dict())
    before = [metric for _, metric in evaluators_of(cfg, 'test')]
    dump_predictions(cfg, out)
    *kept, added = [metric for _, metric in evaluators_of(cfg, 'test')]
    assert kept == before
    assert type_name(added) == writer


def test_label_maps_know_the_folder_of_the_images(root):
    cfg = load_config(str(root / 'configs/demo/fpn_poolformer_s12.py'))
    dump_predictions(cfg, 'maps')
    writer = cfg.test_evaluator[-1]
    assert writer.folder == os.path.abspath('maps')
    assert writer.roots == ['data/shapes/ade/images/validation']


def test_detections_go_to_a_pickle(root):
    cfg = load_config(str(root / 'configs/demo/retinanet_poolformer_s12.py'))
    with pytest.raises(UserError, match=r'--out maps: detections go to a .pkl file'):
        dump_predictions(cfg, 'maps')
