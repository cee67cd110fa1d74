"""The configs that come with this project, by name."""

from __future__ import annotations

import difflib
from pathlib import Path

from .errors import UserError

_PACKAGE = Path(__file__).resolve().parent
# In an installed wheel they are inside the package, in a clone beside it.
CONFIGS = next(
    (path for path in (_PACKAGE / 'configs', _PACKAGE.parent / 'configs') if path.is_dir()),
    _PACKAGE / 'configs',
)


def config_names() -> list[str]:
    """Return the names of the shipped configs, such as ``demo/retinanet_poolformer_s12``."""
    paths = sorted(path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py'))
    return [path.with_suffix('').as_posix() for path in paths if not _hidden(path)]


def config_path(name: str) -> str:
    """Return the path of a shipped config.

    A config of your own inherits it by
    ``_base_ = __import__('poolformer_dense').config_path('retinanet_poolformer_s12')``.

    Args:
        name: Its path below ``configs/``, without suffix.

    Raises:
        UserError: There is none of this name.
    """
    path = CONFIGS / f'{name}.py'
    if not _hidden(Path(name)) and '..' not in Path(name).parts and path.is_file():
        return str(path)
    nearest = difflib.get_close_matches(name, config_names(), 1, 0.6)
    hint = f'; the nearest is {nearest[0]}' if nearest else ''
    raise UserError(f'no config is called {name!r}{hint}; {CONFIGS} has them all')


def find_config(config: str) -> str:
    """Return the path of a config that is given by its path, or by the name of a shipped one.

    Raises:
        UserError: There is no such file, and none of this name.
    """
    if Path(config).is_file():
        return config
    name = config.removesuffix('.py')
    try:
        return config_path(name)
    except UserError:
        nearest = difflib.get_close_matches(name, config_names(), 1, 0.6)
        stem = Path(name).name
        hint = stem if stem in config_names() else nearest[0] if nearest else ''
        raise UserError(
            f'config {config} does not exist (looked at {Path(config).absolute()})'
            + (f'; a shipped config is called {hint}' if hint else '')
        ) from None


def _hidden(path: Path) -> bool:
    return any(part.startswith(('_', '.')) for part in path.parts)
