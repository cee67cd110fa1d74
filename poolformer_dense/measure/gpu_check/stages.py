"""The stages by name; each can run alone."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch

from .backbone_times import backbone, compiles
from .detector import detector
from .kernels import bandwidth, kernels
from .result import Setting, StageResult
from .training import amp, exact, nccl


def env(setting: Setting, result: StageResult) -> None:
    """What the machine has."""
    result.add(what='python', version=platform.python_version())
    for name in ('torch', 'triton', 'numpy', 'onedl-mmengine', 'onedl-mmcv', 'timm'):
        try:
            result.add(what=name, version=version(name))
        except PackageNotFoundError:
            result.missing.append(name)
    for tool in ('nvcc', 'compute-sanitizer'):
        if shutil.which(tool) is None:
            result.missing.append(tool)
    if setting.dry:
        return
    name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
    result.add(what=name, version='.'.join(map(str, capability)))
    result.add(what='CUDA of torch', version=str(torch.version.cuda))
    result.check(capability >= (8, 0), f'{name}: the kernels are for Ampere and later')


STAGES: dict[str, Callable[[Setting, StageResult], None]] = {
    'env': env,
    'kernels': kernels,
    'bandwidth': bandwidth,
    'backbone': backbone,
    'compiles': compiles,
    'amp': amp,
    'detector': detector,
    'exact': exact,
    'nccl': nccl,
}
