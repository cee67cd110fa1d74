"""Diagnosis of an environment: what is installed, does it agree with itself, what to type if not.

Needs nothing but `packaging`, so that it speaks where torch or mmengine is missing.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

try:
    from packaging.requirements import Requirement
except ImportError:  # a bare environment still has pip, which carries a copy
    from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]

FAMILIES = {
    'onedl': ('onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection', 'onedl-mmsegmentation'),
    'openmmlab': ('mmengine', 'mmcv', 'mmdet', 'mmsegmentation'),
}
# Distributions that write the same files: the one installed last wins, silently.
SAME_FILES = (
    r'(onedl-)?mmcv(-lite|-full)?',
    r'(onedl-)?mmengine(-lite)?',
    r'opencv(-contrib)?-python(-headless)?',
)
TOOLBOXES = {name for names in FAMILIES.values() for name in names[2:]}  # either is enough
IN_VENV = sys.prefix != sys.base_prefix
PIP = f'{sys.executable} -m pip'
ROOT = Path(__file__).resolve().parents[1]
IN_CLONE = (ROOT / 'requirements').is_dir()  # rather than in an installed wheel
REINSTALL = f"{PIP} install --force-reinstall 'poolformer-dense[onedl]'"
if IN_CLONE:
    REINSTALL = 'make setup'
    if IN_VENV:
        REINSTALL = f'rm -f {sys.prefix}/.setup-*; make setup VENV={sys.prefix}'
# What a wheel says of itself about a requirement file: an extra, or what it needs without one.
EXTRAS = {'runtime': None, 'stack-onedl': 'onedl', 'optional': 'optional'}
GPU_BUILD = "make setup VENV=.venv-gpu TORCH='torch==... --index-url ...' (see docs/setup.md)"


class Diagnosis(NamedTuple):
    """One row of the report; `status` is 'ok', 'note' or 'PROBLEM'."""

    name: str
    found: str
    status: str = 'ok'
    remedy: str = ''


def installed_distributions() -> dict[str, str]:
    """Returns the version of each installed distribution, by its normalised name."""
    found: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        if name := dist.metadata['Name']:
            found.setdefault(re.sub(r'[-_.]+', '-', name).lower(), dist.version)
    return found


def read_requirements(path: Path) -> list[Requirement]:
    """Returns the requirements in a file, without its comments and pip options."""
    lines = (line.split(' #')[0].strip() for line in path.read_text().splitlines())
    return [Requirement(line) for line in lines if line and line[0] not in '#-']


def read_needs(part: str) -> list[Requirement]:
    """Returns what a requirement file asks for; in an installed wheel, what its metadata say."""
    if IN_CLONE:
        return read_requirements(ROOT / 'requirements' / f'{part}.txt')
    if part not in EXTRAS:
        return []
    wanted = EXTRAS[part]
    declared = map(Requirement, importlib.metadata.requires('poolformer-dense') or [])
    return [each for each in declared if _extra(each) == wanted]


def _extra(requirement: Requirement) -> str | None:
    found = re.search(r'extra == "(\w+)"', str(requirement.marker))
    return found and found.group(1)


def check_python(version: tuple[int, ...]) -> Diagnosis:
    """Checks the interpreter against the range that setup.cfg declares."""
    row = Diagnosis('python', '.'.join(map(str, version[:3])))
    if (3, 10) <= version[:2] < (3, 14):
        return row
    return row._replace(status='PROBLEM', remedy='3.10 to 3.13: make setup PYTHON=python3.11')


def find_stack(dists: dict[str, str]) -> tuple[str, Diagnosis]:
    """Returns the family of the installed toolboxes (onedl when there is none) and its row."""
    present = {key: [name for name in names if name in dists] for key, names in FAMILIES.items()}
    found = [family for family, names in present.items() if names]
    if len(found) == 2:
        remedy = f'{PIP} uninstall {" ".join(present["openmmlab"])}; {REINSTALL}'
        return 'onedl', Diagnosis('stack', 'onedl and openmmlab, mixed', 'PROBLEM', remedy)
    if found:
        return found[0], Diagnosis('stack', found[0])
    return 'onedl', Diagnosis('stack', 'none', 'PROBLEM', 'make setup')


def check_version(
    requirement: Requirement, dists: dict[str, str], needed: bool = True
) -> Diagnosis:
    """Checks one distribution against its tested range; lacking one is a note if not needed."""
    name, version = requirement.name, dists.get(requirement.name)
    if version and requirement.specifier.contains(version, prereleases=True):
        return Diagnosis(name, version)
    remedy = REINSTALL if name.endswith(('mmcv', 'torch')) else f"{PIP} install '{requirement}'"
    if version is None:
        return Diagnosis(name, 'missing', 'PROBLEM' if needed else 'note', remedy)
    if name == 'torch':  # never replaced in place: what is compiled depends on it
        remedy = 'make setup VENV=.venv-new'
    return Diagnosis(name, f'{version}, tested: {requirement.specifier}', 'PROBLEM', remedy)


def check_doubles(dists: dict[str, str]) -> list[Diagnosis]:
    """Finds distributions that overwrite each other's files.

    imaug, which onedl-mmdetection requires, brings two OpenCV distributions: fine at one version.
    """
    findings = []
    for pattern in SAME_FILES:
        present = sorted(name for name in dists if re.fullmatch(pattern, name))
        same = 'opencv' in pattern and len({dists[name] for name in present}) == 1
        if len(present) > 1 and not same:
            found = ' and '.join(f'{name} {dists[name]}' for name in present)
            remedy = f'{PIP} uninstall {" ".join(present)}; {REINSTALL}'
            findings.append(Diagnosis('doubled', found, 'PROBLEM', remedy))
    return findings


def check_import(module: str, load: Callable = importlib.import_module) -> Diagnosis:
    """Imports a module; known failures have their own remedy."""
    try:
        load(module)
    except Exception as error:
        reason = ' '.join(str(error).split())[:120]
        remedy = REINSTALL
        if re.search(r'lib(GL|gthread|glib)\b', reason):
            remedy = 'sudo apt-get install -y libgl1 libglib2.0-0'
        elif module == 'torchvision':  # a mismatch with torch breaks mmengine and mmseg too
            remedy = f'{PIP} uninstall torchvision (nothing here needs it)'
        return Diagnosis(f'import {module}', reason, 'PROBLEM', remedy)
    return Diagnosis(f'import {module}', 'works')


def list_gpus() -> list[str]:
    """Returns name and driver of each GPU that nvidia-smi reports."""
    command = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        output = subprocess.check_output(command, stderr=subprocess.DEVNULL, timeout=30)
        return output.decode().splitlines()
    except (OSError, subprocess.SubprocessError):
        return []


def check_cuda(
    torch_cuda: str | None, available: bool, gpus: list[str], mmcv_cuda: str | None
) -> list[Diagnosis]:
    """Checks that the driver, torch and mmcv agree on CUDA.

    Args:
        torch_cuda: the CUDA version torch was built with, None for a CPU build.
        available: whether torch can use a GPU.
        gpus: what `list_gpus` returns.
        mmcv_cuda: the CUDA version mmcv's operators were built with, None for CPU only.
    """
    rows = [Diagnosis('GPUs', '; '.join(gpus) or 'none')]
    if torch_cuda is None:
        remedy = f'to use the GPU: {GPU_BUILD}' if gpus else ''
        return [*rows, Diagnosis('torch CUDA', 'CPU build', 'note' if gpus else 'ok', remedy)]
    if available:
        rows.append(Diagnosis('torch CUDA', torch_cuda))
    elif gpus:
        remedy = f'update the NVIDIA driver, or take an older CUDA: {GPU_BUILD}'
        rows.append(Diagnosis('torch CUDA', f'{torch_cuda}, refuses the GPU', 'PROBLEM', remedy))
    else:
        rows.append(Diagnosis('torch CUDA', f'{torch_cuda}, no GPU here', 'note'))
    if mmcv_cuda and mmcv_cuda.split('.')[0] == torch_cuda.split('.')[0]:
        return [*rows, Diagnosis('mmcv CUDA', mmcv_cuda)]
    found = f'{mmcv_cuda or "CPU only"}, torch has {torch_cuda}'
    return [*rows, Diagnosis('mmcv CUDA', found, 'PROBLEM', f'{REINSTALL} FORCE_CUDA=1')]


def diagnose() -> list[Diagnosis]:
    """Examines the running environment against what this project asks for."""
    dists = installed_distributions()
    stack, row = find_stack(dists)
    rows = [check_python(sys.version_info[:3]), row]
    for part in ('runtime', f'stack-{stack}', 'tests', 'optional'):
        for requirement in read_needs(part):
            needed = part != 'tests' and requirement.name not in TOOLBOXES
            if part != 'optional' or requirement.name in dists:
                row = check_version(requirement, dists, needed)
                rows += [row] if row not in rows else []
    rows += check_doubles(dists)
    _, _, mmdet, mmseg = FAMILIES[stack]
    modules = ['torch', 'cv2', 'mmengine', 'mmcv._ext']
    optional = (('torchvision', 'torchvision'), (mmdet, 'mmdet'), (mmseg, 'mmseg'))
    modules += [module for name, module in optional if name in dists]
    imports = {module: check_import(module) for module in modules}
    rows += imports.values()
    if imports['mmcv._ext'].status == 'ok':
        torch, ops = importlib.import_module('torch'), importlib.import_module('mmcv.ops')
        cuda = ops.get_compiling_cuda_version().replace('not available', '')
        rows += check_cuda(torch.version.cuda, torch.cuda.is_available(), list_gpus(), cuda or None)
    return rows


def format_findings(rows: list[Diagnosis]) -> str:
    """Lays the rows out as text, each remedy on a line of its own under its row."""
    width, lines = max(len(row.name) for row in rows), []
    for row in sorted(rows, key=lambda row: row.status == 'PROBLEM'):  # problems last, in sight
        lines.append(f'{row.status:<8} {row.name:<{width}}  {row.found}')
        if row.remedy:
            lines.append(f'{"":<8} {"":<{width}}  -> {row.remedy}')
    problems = sum(row.status == 'PROBLEM' for row in rows)
    return '\n'.join([*lines, f'problems: {problems}' if problems else 'all is well'])
