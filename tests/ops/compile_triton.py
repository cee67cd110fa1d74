"""Compile the Triton kernels for a GPU that needn't be there; print what each variant takes.

    python tests/ops/compile_triton.py 90             # Hopper; 80 is Ampere
    python tests/ops/compile_triton.py 90 --rows 2    # the first rows only
    python tests/ops/compile_triton.py 90 --sizes 50  # count the variants for so many sizes of maps

The interpreter accepts what the compiler doesn't, and knows no registers. Triton's own rules say
which variants there are. The calls cover each pair of: a dtype, a number of channels, a size, and
what is left out. A line for each variant: its registers, the bytes it spills for want of them, and
its shared memory.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import compute_cache_key, create_function_from_signature

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backbones.ops import MLPInputs
from backbones.ops.backends.triton import fused_mlp, mlp, mlp_weights, norm, pool
from backbones.ops.pool_mix import PoolMixInputs

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
FACTORS = dict(
    # Of the residual stream and of the products.
    dtypes=[(F32, BF16), (F32, F16), (F32, F32), (BF16, BF16), (F16, F16), (F64, F64)],
    dim=[64, 128, 320, 512, 33, 1],
    size=[(2, 16, 16), (1, 1, 1), (3, 7, 9)],
    bias=[True, False],
    scale=[True, False],
    drop=[True, False],
    keep=[True, False],
)
TOOLS = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'


class Compiler:
    """Stands in for `launch`: compiles each variant once instead of launching it."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget('cuda', capability, 32)
        self.backend = make_backend(self.target)
        self.variants: dict[str, str] = {}

    def key(self, kernel: object, *arguments: object, **constants: object) -> tuple[str, tuple]:
        """What Triton's cache goes by, and what its compiler takes."""
        binder = create_function_from_signature(kernel.signature, kernel.params, self.backend)
        bound, specialization, options = binder(*arguments, debug=False, **constants)
        key = compute_cache_key({}, specialization, options)
        key = f'{kernel.__module__}.{kernel.__name__} {key}'
        return key, kernel._pack_args(self.backend, constants, bound, specialization, options)

    def __call__(self, kernel: object, _: int, *arguments: object, **constants: object) -> None:
        key, (options, signature, constexprs, attributes) = self.key(
            kernel, *arguments, **constants
        )
        if key in self.variants:
            return
        source = ASTSource(kernel, signature, constexprs, attributes)
        try:
            compiled = triton.compile(source, target=self.target, options=options.__dict__)
        except Exception as error:
            error.add_note(f'{key}')
            raise
        self.variants[key] = ''
        module = kernel.__module__.removeprefix('backbones.ops.backends.triton.')
        kinds = ' '.join('-' if kind == 'constexpr' else kind for kind in signature.values())
        usage = resources(compiled, self.target.arch)
        line = f'{module}.{kernel.__name__}: {usage}, {compiled.metadata.shared} shared ({kinds})'
        print(line, flush=True)


class Counter(Compiler):
    """Stands in for `launch`: counts the variants of each kernel."""

    def __call__(self, kernel: object, _: int, *arguments: object, **constants: object) -> None:
        key, _ = self.key(kernel, *arguments, **constants)
        self.variants[key] = f'{kernel.__module__}.{kernel.__name__}'


def count_variants(counter: Counter, sizes: int) -> None:
    """Print the variants that one size of maps takes, and that many sizes take."""
    draw = random.Random(0)
    row = dict(dtypes=(F32, BF16), bias=True, scale=True, drop=True, keep=True)
    for number in range(sizes):
        size = (draw.randint(1, 3), draw.randint(1, 70), draw.randint(1, 70))
        for dim in (64, 320):
            block(row | dict(dim=dim, size=size if number else (2, 16, 16)))
        if number in (0, sizes - 1):
            print(f'{number + 1} sizes: {len(counter.variants)} variants', flush=True)


def resources(compiled: object, capability: int) -> str:
    """Registers and spilled bytes, by NVIDIA's tools."""

    def tell(tool: str, name: str, *options: object) -> str:
        content = compiled.asm[name]
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, name)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            command = [TOOLS / tool, *map(str, options), file]
            done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        return done.stdout + done.stderr

    usage = tell('cuobjdump', 'cubin', '-res-usage')
    registers, stack = (int(re.search(rf'{key}:(\d+)', usage).group(1)) for key in ('REG', 'STACK'))
    spilled = 0
    if stack:  # for a function's call, or for want of registers
        arch = f'sm_{capability}{"a" if capability == 90 else ""}'
        found = re.search(r'(\d+) bytes spill stores', tell('ptxas', 'ptx', '-v', f'-arch={arch}'))
        spilled = int(found.group(1))
    return f'{registers} registers, {spilled} spilled'


def pairwise(factors: dict[str, list]) -> Iterator[dict[str, object]]:
    """Rows in which each value of a factor meets each value of every other."""
    names = list(factors)
    rows = [
        dict(zip(names, values, strict=True)) for values in itertools.product(*factors.values())
    ]

    def pairs(row: dict[str, object]) -> set[tuple[object, ...]]:
        return {(a, row[a], b, row[b]) for a, b in itertools.combinations(names, 2)}

    wanted = set().union(*map(pairs, rows))
    while wanted:
        best = max(rows, key=lambda row: len(pairs(row) & wanted))
        wanted -= pairs(best)
        yield best


def block(row: dict[str, object]) -> None:
    """Call every operator once, forward and backward."""
    (stream, products), dim, (batch, height, width) = row['dtypes'], row['dim'], row['size']
    x = torch.zeros(batch, dim, height, width, dtype=stream)
    x = x.contiguous(memory_format=torch.channels_last)
    learned = stream if stream in (F64, products) else F32
    gain, b1 = torch.ones(dim, dtype=learned), torch.zeros(4 * dim, dtype=learned)
    w1, w2 = (
        torch.zeros(4 * dim, dim, 1, 1, dtype=learned),
        torch.zeros(dim, 4 * dim, 1, 1, dtype=learned),
    )
    drop = torch.ones(batch) if row['drop'] else None
    shift, scale = (gain if row[name] else None for name in ('bias', 'scale'))
    _, statistics = norm.norm_forward(x, gain, shift, 1e-5)
    norm.norm_backward(x, x, statistics, gain)
    mixing = PoolMixInputs(x, gain, shift, scale, drop)
    pool.pool_mix_forward(mixing, 1e-5)
    pool.pool_mix_backward(x, mixing, statistics)
    inputs = MLPInputs(x, gain, shift, w1, b1 if row['bias'] else None, w2, shift, scale, drop)
    *_, hidden = mlp.norm_mlp_forward(inputs, 1e-5, products, row['keep'])
    mlp.norm_mlp_backward(x, inputs, statistics, hidden, products)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('capability', type=int)
    parser.add_argument('--rows', type=int)
    parser.add_argument('--sizes', type=int)
    args = parser.parse_args()
    compiler = (Counter if args.sizes else Compiler)(args.capability)
    for module in (fused_mlp, mlp, mlp_weights, norm, pool):
        module.launch = compiler
    if args.sizes:
        return count_variants(compiler, args.sizes)
    for row in itertools.islice(pairwise(FACTORS), args.rows):
        block(row)


if __name__ == '__main__':
    main()
