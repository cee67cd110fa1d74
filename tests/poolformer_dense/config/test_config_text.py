"""The text of a config is read and never run."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.config import Config

from poolformer_dense.config.config_text import is_plain, parse_config


class TestParseConfig:
    def test_it_reads_what_mmengine_writes(self):
        content = dict(
            a=float('inf'), b={'x-y': 1, 'z': (1,)}, c=dict(d=[dict(type='A')], e=None, f=-1.5),
            g=r'^a\d', h=[], i={}, j=True,
        )  # fmt: skip
        assert parse_config(Config(content).pretty_text) == content | dict(b={'x-y': 1, 'z': [1]})

    def test_it_runs_nothing(self, tmp_path):
        text = f'a = open({str(tmp_path / "opened")!r}, "w")\nimport os\nb = 1'
        assert parse_config(text) == dict(a=f"open({str(tmp_path / 'opened')!r}, 'w')", b=1)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize('text', [None, 3, 'a = (', 'a\0', '(' * 10_000, 'a = dict(3)', b'a'])
    def test_what_is_no_config_has_nothing(self, text):
        assert parse_config(text) == {}


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_plain_is_written_and_read_as_it_is(value):
    if is_plain(dict(a=value)):
        text = Config(dict(a=value), format_python_code=False).pretty_text
        assert parse_config(text) == dict(a=value)


@pytest.mark.parametrize(
    'node',
    [
        {"x': print(), 'y": 1},
        ['{{$HOME:1}}'],
        dict(a=[{'a\\': 1}]),
        {'a\n': 1},
        {'º': 1},
        {'None': 1},
        {'if': 1},
    ],
)
def test_what_could_become_code_or_another_key_is_not_plain(node):
    assert not is_plain(node)
