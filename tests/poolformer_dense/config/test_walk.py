"""The walker finds what a config holds, however it is wrapped."""

from __future__ import annotations

from mmengine.config import Config

from poolformer_dense.config.walk import (
    datasets_of,
    evaluators_of,
    nodes_of_type,
    type_name,
    walk,
)


def test_every_node_comes_with_its_place_and_after_its_parent():
    node = dict(a=[dict(b=1), (2, 'three')], c=None)
    assert list(walk(node)) == [
        ('', node), ('a', node['a']), ('a.0', dict(b=1)), ('a.0.b', 1), ('a.1', (2, 'three')),
        ('a.1.0', 2), ('a.1.1', 'three'), ('c', None),
    ]  # fmt: skip
    assert [place for place, _ in walk(dict(a=1), 'model')] == ['model', 'model.a']
    assert dict(walk(Config(dict(a=dict(b=1)))))['a.b'] == 1


def test_a_walker_may_change_what_it_is_given():
    cfg = Config(dict(model=dict(norm=dict(type='SyncBN'), heads=[dict(type='SyncBN'), 'SyncBN'])))
    for _, node in nodes_of_type(cfg.model, 'SyncBN', 'model'):
        node['type'] = 'BN'
    assert cfg.to_dict() == dict(
        model=dict(norm=dict(type='BN'), heads=[dict(type='BN'), 'SyncBN'])
    )


def test_a_type_is_a_name_with_or_without_its_scope_or_a_class():
    nodes = [dict(type='Resize'), dict(type='mmseg.Resize'), dict(type=Config), dict(), 'Resize', 1]
    assert [type_name(node) for node in nodes] == ['Resize', 'Resize', 'Config', '', '', '']
    assert [place for place, _ in nodes_of_type(nodes, 'Resize')] == ['0', '1']


def _places(found):
    return {place: node['type'] for place, node in found}


def test_data_sets_are_found_inside_wrappers():
    mixed = dict(type='MultiImageMixDataset', dataset=dict(type='A', pipeline=[]), pipeline=[])
    repeated = dict(type='RepeatDataset', dataset=dict(type='ClassBalancedDataset', dataset=mixed))
    cfg = Config(
        dict(
            train_dataloader=dict(
                batch_size=2,
                dataset=dict(type='ConcatDataset', datasets=[repeated, dict(type='B')]),
            ),
            val_dataloader=dict(dataset=dict(type='B')),
            test_dataloader=None,
        )
    )
    assert _places(datasets_of(cfg, 'train')) == {
        'train_dataloader.dataset.datasets.0.dataset.dataset.dataset': 'A',
        'train_dataloader.dataset.datasets.1': 'B',
    }
    assert _places(datasets_of(cfg, 'val')) == {'val_dataloader.dataset': 'B'}
    assert _places(datasets_of(cfg, 'test')) == {}


def test_evaluators_are_one_or_a_list_or_inside_an_evaluator():
    one, two = dict(type='CocoMetric'), dict(type='DumpResults')
    cfg = Config(
        dict(train_evaluator=one, val_evaluator=[one, two], test_evaluator=dict(metrics=[one, two]))
    )
    found = {split: _places(evaluators_of(cfg, split)) for split in ('train', 'val', 'test')}
    assert found == {
        'train': {'train_evaluator': 'CocoMetric'},
        'val': {'val_evaluator.0': 'CocoMetric', 'val_evaluator.1': 'DumpResults'},
        'test': {
            'test_evaluator.metrics.0': 'CocoMetric',
            'test_evaluator.metrics.1': 'DumpResults',
        },
    }
    assert _places(evaluators_of(Config(dict(val_evaluator=None)), 'val')) == {}
