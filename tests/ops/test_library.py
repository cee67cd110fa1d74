"""Building and finding the compiled loops."""

from __future__ import annotations

import ctypes
import re
import shutil

import pytest
import torch
from torch._subclasses import FakeTensorMode

from backbones.ops.backends import cpu, library, products


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A copy of the source, for which nothing is built yet."""
    path = tmp_path / library.SOURCE.name
    shutil.copy(library.SOURCE, path)
    monkeypatch.setattr(library, 'SOURCE', path)
    monkeypatch.setattr(library, 'loops', None)
    monkeypatch.setattr(library, 'tried', False)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr('platform.machine', lambda: 'x86_64')
    return path


@pytest.fixture
def compiler(tmp_path):
    """Stands for a compiler that writes its last argument."""
    script = tmp_path / 'compiler'
    script.write_text('#!/bin/sh\nfor last; do :; done\necho compiled > "$last"\n')
    script.chmod(0o755)
    return script


def _built(source):
    return sorted(path.name for path in source.parent.glob('*.so'))


def test_a_library_for_each_level_beside_the_source(source, compiler):
    paths = library.build(str(compiler))
    assert sorted(path.name for path in paths) == _built(source)
    assert len(paths) == len(library.LEVELS)


def test_what_is_built_is_not_built_again(source, compiler):
    paths = library.build(str(compiler))
    assert library.build('no-such-compiler') == paths


def test_libraries_of_another_source_are_replaced(source, compiler):
    old = library.build(str(compiler))
    source.write_text(source.read_text() + '// changed\n')
    assert library.load() is None
    new = library.build(str(compiler))
    assert not set(old) & set(new)
    assert _built(source) == sorted(path.name for path in new)


def test_without_a_compiler(source):
    with pytest.raises(RuntimeError, match='no-such-compiler can not be run'):
        library.build('no-such-compiler')
    assert library.load() is None


def test_a_compiler_that_fails_leaves_nothing(source, compiler):
    compiler.write_text('#!/bin/sh\necho "native.cpp:1: error: too old" >&2\nexit 1\n')
    with pytest.raises(RuntimeError, match='error: too old'):
        library.build(str(compiler))
    assert sorted(path.name for path in source.parent.iterdir()) == ['compiler', source.name]


def test_another_kind_of_processor(source, monkeypatch):
    monkeypatch.setattr('platform.machine', lambda: 'aarch64')
    with pytest.raises(RuntimeError, match='aarch64'):
        library.build()


def test_a_library_that_does_not_load_is_passed_over(source, compiler):
    library.build(str(compiler))
    assert library.load() is None


def test_what_can_not_be_compiled_is_said_once(source, monkeypatch):
    said = []
    monkeypatch.setattr(library, 'print_log', lambda text, *_: said.append(text))
    monkeypatch.setenv('CXX', 'no-such-compiler')
    monkeypatch.setattr(torch.backends.cpu, 'get_cpu_capability', lambda: 'AVX2')
    assert [library.compiled() for _ in range(3)] == [False] * 3
    [line] = said
    assert 'no-such-compiler can not be run' in line
    assert 'poolformer-dense build-ops' in line


def test_a_folder_that_can_not_be_written_leaves_the_users_cache(source, compiler, monkeypatch):
    monkeypatch.setattr('os.access', lambda path, mode: False)
    paths = library.build(str(compiler))
    assert {path.parent for path in paths} == {source.parent / 'cache/poolformer-dense'}
    assert library.build('no-such-compiler') == paths
    assert _built(source) == []


@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
def test_the_first_use_compiles(source, monkeypatch):
    level = torch.backends.cpu.get_cpu_capability()
    if level not in library.LEVELS:
        pytest.skip(f'no loops for {level}')
    monkeypatch.delenv('CXX', raising=False)
    assert library.compiled()
    assert isinstance(library.loops, library.Loops)
    assert _built(source) == [library._name(level)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which('g++'), reason='needs g++')
def test_the_loops_compile_and_run(source):
    library.build('g++')
    call = library.load()
    if call is None:
        pytest.skip(f'no loops for {torch.backends.cpu.get_cpu_capability()}')
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    found = torch.empty(2), torch.empty(2)
    call('moments', x, 2, x[0].numel(), 1e-5, *found)
    for a, b in zip(found, cpu.moments(x, 1e-5), strict=True):
        torch.testing.assert_close(a, b)


def _map(dtype=torch.float32):
    return torch.randn(2, 3, 8, 8).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.skipif(not library.compiled(), reason='the loops can not be compiled')
@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(x=_map(torch.float64)), 'argument 1: .*needs a dense tensor of torch.float32'),
        (dict(x=_map().contiguous()), 'argument 1: .*strides'),
        (dict(x=_map().to('meta')), 'argument 1: .*on meta'),
        (dict(x=FakeTensorMode().from_tensor(_map())), 'argument 1: .*with data'),
        (dict(x=[1.0]), 'argument 1: .*got list'),
        (dict(samples=2.0), 'argument 2'),
        (dict(samples=None), 'argument 2'),
        (dict(eps=torch.zeros(2)), 'argument 4'),
        (dict(rstd=None), 'argument 6: .*got None'),
        (dict(more=1), 'takes 6 arguments, got 7'),
    ],
)
def test_a_wrong_call_of_a_loop_is_an_error(change, message):
    right = dict(x=_map(), samples=2, size=192, eps=1e-5, mean=torch.empty(2), rstd=torch.empty(2))
    library.loops('moments', *right.values())
    with pytest.raises((TypeError, ctypes.ArgumentError), match=message):
        library.loops('moments', *(right | change).values())


@pytest.mark.skipif(not library.compiled(), reason='the loops can not be compiled')
def test_every_loop_is_declared_as_the_source_has_it():
    """As many arguments, of the same kinds, as the functions of native.cpp have parameters."""
    source = library.SOURCE.read_text()
    letters = {'float*': 'f', 'double*': 'd', 'T*': 't', 'int64_t': 'i', 'double': 'e'}
    for name, declared in library.SIGNATURES.items():
        (parameters,) = re.findall(rf'template <class T>\nvoid {name}\(([^)]*)\)', source)
        kinds = [re.sub(r'const ', '', p.strip()).split()[0] for p in parameters.split(',')]
        found = ''.join(letters[kind] for kind in kinds)
        if name in ('moments', 'pool_mix_sums', 'pool_mix_gradient', 'pool_mix'):
            found = found.replace('t', 'f')  # they exist for float alone
        assert found == declared.lower() + 'i', name


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_products_without_the_private_operator_are_the_same(dtype, monkeypatch):
    tokens, weight, bias = (torch.randn(*size).to(dtype) for size in ((9, 5), (7, 5), (7,)))
    found = [
        products.product(tokens, weight, bias),
        products.product(tokens @ weight.t(), weight.t()),
    ]
    monkeypatch.setattr(products, 'ONEDNN', ())
    expected = [
        products.product(tokens, weight, bias),
        products.product(tokens @ weight.t(), weight.t()),
    ]
    near = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found, expected, rtol=near, atol=near)
