"""Training, evaluating and using MetaFormer detectors and segmentors.

What stands in ``__all__`` is imported when it is first used, because torch takes seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backbones.version import __version__

    from .api import Training, evaluate, export, load, train
    from .errors import UserError
    from .measure.export_parity import Exported
    from .predict.masks import Masks
    from .predict.predictor import Predictor
    from .predict.results import Detections, Segmentation
    from .shipped import config_names, config_path

_PLACES = {
    '__version__': 'backbones.version',
    'Detections': '.predict.results',
    'Exported': '.measure.export_parity',
    'Masks': '.predict.masks',
    'Predictor': '.predict.predictor',
    'Segmentation': '.predict.results',
    'Training': '.api',
    'UserError': '.errors',
    'config_names': '.shipped',
    'config_path': '.shipped',
    'evaluate': '.api',
    'export': '.api',
    'load': '.api',
    'train': '.api',
}

__all__ = [
    'Detections',
    'Exported',
    'Masks',
    'Predictor',
    'Segmentation',
    'Training',
    'UserError',
    '__version__',
    'config_names',
    'config_path',
    'evaluate',
    'export',
    'load',
    'train',
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(_PLACES[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
