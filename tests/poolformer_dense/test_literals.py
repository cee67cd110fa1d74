"""What is typed after KEY= is what arrives."""

from __future__ import annotations

import argparse
import math

import pytest

from poolformer_dense.cli import add_config
from poolformer_dense.literals import parse_value


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('4', 4), ('1e-3', 0.001), ('-.5', -0.5), ('True', True), ('false', False), ('None', None),
        ('', ''), ('s24', 's24'), ('none', 'none'), ("it's", "it's"), ('a(b', 'a(b'),
        ('/a b/c,d.pth', '/a b/c,d.pth'), ('a,b.json', 'a,b.json'), ('C:\\a,b', 'C:\\a,b'),
        ('/d/a(1),b/[x].jpg', '/d/a(1),b/[x].jpg'), ('s3://b/a,b', 's3://b/a,b'),
        ("'a,b'", 'a,b'), ('"x y"', 'x y'), ("'1'", '1'), (' a ', ' a '),
        ('1,2,3', [1, 2, 3]), ('0.9,0.99', [0.9, 0.99]), ('bbox,segm', ['bbox', 'segm']),
        ('cat,', ['cat']), ("'a b','c d'", ['a b', 'c d']), ("person's,cat", ["person's", 'cat']),
        ('()', ()), ('[]', []), ('(1,)', (1,)), ('(person)', ('person',)), ('[1, 2]', [1, 2]),
        ("('traffic light','stop sign')", ('traffic light', 'stop sign')),
        ('[traffic light, stop sign]', ['traffic light', 'stop sign']),
        ('[(1,2),[a,b],c]', [(1, 2), ['a', 'b'], 'c']), ('(1,2),(3,4)', [(1, 2), (3, 4)]),
        ("['/a/b,c', d.json]", ['/a/b,c', 'd.json']),
        ('[dict(type=IoUMetric)]', [dict(type='IoUMetric')]), ('dict()', {}),
        ('dict(a', 'dict(a'), ('dict(1)', 'dict(1)'),
        ('dict(a=[b, 1], c=dict(d=x y))', dict(a=['b', 1], c=dict(d='x y'))),
        ("{'type': 'Pretrained', 'sizes': (1, 2)}", dict(type='Pretrained', sizes=(1, 2))),
    ],
)  # fmt: skip
def test_values(text, value):
    parsed = parse_value(text)
    assert parsed == value
    assert type(parsed) is type(value)


def test_no_number_is_a_number():
    assert math.isnan(parse_value('nan'))


def test_a_command_line_is_collected_from_all_its_parts(tmp_path):
    config = tmp_path / 'a b.py'
    config.touch()
    parser = argparse.ArgumentParser()
    add_config(parser)
    words = [str(config), '--cfg-options', 'a.b=x=y', 'c=1', '--cfg-options', 'c=2', 'd=e f']
    assert parser.parse_args(words).cfg_options == {'a.b': 'x=y', 'c': 2, 'd': 'e f'}
    assert parser.parse_args([str(config)]).cfg_options is None


def test_a_value_with_spaces_without_quotes_says_how_to_quote(tmp_path, capsys):
    config = tmp_path / 'a.py'
    config.touch()
    parser = argparse.ArgumentParser()
    add_config(parser)
    with pytest.raises(SystemExit):
        parser.parse_args([str(config), '--cfg-options', 'load_from=/a', 'b.pth'])
    assert "'b.pth' is not of the form key=value; put quotes around" in capsys.readouterr().err
