"""Object stores are one line, wherever they stand; all else is let be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolformer_dense.cli import make_parser
from poolformer_dense.errors import UserError
from poolformer_dense.object_stores import in_store

STORES = ['s3', 'S3', 's3a', 'petrel', 'ceph', 'gs', 'hdfs', 'oss', 'obs', 'abfs', 'cluster:s3']


@given(st.sampled_from(STORES), st.text())
def test_addresses_are_known(scheme, path):
    assert in_store(f'{scheme}://{path}')


@pytest.mark.parametrize(
    'path',
    ['data/s3', '/data/s3:/a', 's3.pth', 'https://a/s3://b', 'http://s3/a', 'file:///a', 's3:/a',
     'torchvision://resnet50', 'tcp://a:1', 'sqlite:///a', '', None, 3, ['s3://a']],
)  # fmt: skip
def test_what_is_something_else(path):
    assert not in_store(path)


@pytest.mark.parametrize('words', [['s3://b/a'], ['--out', 'gs://b/a'], ['--out=hdfs://b/a']])
def test_a_command_line_with_one_is_one_line(words):
    parser = make_parser('')
    parser.add_argument('paths', nargs='*')
    parser.add_argument('--out')
    with pytest.raises(UserError, match=r'://b/a: object stores .* mount the bucket.*aws s3 cp'):
        parser.parse_args(words)
    assert parser.parse_args(['--out', 'a=s3://b']).out == 'a=s3://b'
