"""What torch.compile makes of the operators."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from backbones import ops
from backbones.ops import operator

# Of the names of kernels: the fused MLP, and what takes its place where it doesn't fit.
KERNELS = {
    '_moments', '_mix', '_mixing_gradient', '_normalize', '_gelu', '_add_branch', '_cast',
    '_drop_and_sum', '_gelu_and_gradient', '_gradient_sums', '_input_gradient', '_finish',
}  # fmt: skip


def test_torchs_cache_tells_one_source_from_another(tmp_path: Path) -> None:
    """By an argument, because it knows nothing of what computes an operator."""
    digests = []
    for source in ('x = 1', 'x = 2'):
        (tmp_path / 'kernels.py').write_text(source)
        digests.append(operator.digest(tmp_path))
    assert digests[0] != digests[1]
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    x, weight = torch.randn(1, 3, 4, 5), torch.ones(3)
    torch.compile(ops.modified_layer_norm, backend=keep)(x, weight, None, 1e-5)
    (node,) = [n for n in graphs[0].graph.nodes if 'modified_layer_norm' in str(n.target)]
    assert node.args[-1] == operator.digest(Path(operator.__file__).parent)


def compile_by_inductor(root: Path, *arguments: object) -> dict[str, Any]:
    """In another process, where Triton's interpreter is off."""
    pytest.importorskip('triton', reason='the Triton compiler is not installed')
    if not operator._SEES_THROUGH:
        pytest.skip(f'torch {torch.__version__} does not look into the operators')
    script = root / 'tests' / 'ops' / 'compile_by_inductor.py'
    result = subprocess.run(
        [sys.executable, script, *map(str, arguments)],
        env=os.environ | {'TRITON_INTERPRET': '0'},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ('dtype', 'batch', 'largest'), [('float32', 2, 1e-5), ('float16', 1, 5e-3)]
)
def test_inductor_sees_the_kernels_and_runs_them_right(
    dtype: str, batch: int, largest: float, root: Path
) -> None:
    found = compile_by_inductor(root, dtype, '--batch', batch)
    assert {*found['calls']} == KERNELS | ({'_branch'} if dtype == 'float16' else set())
    assert found['error'] < largest


@pytest.mark.slow
def test_more_sizes_of_images_take_no_more_graphs(root: Path) -> None:
    """Than one for training and one for inference."""
    assert compile_by_inductor(root, '--sizes', 8)['graphs'] == 2
