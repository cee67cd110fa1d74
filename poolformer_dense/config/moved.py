"""Names of earlier versions, which the configs in their working directories still have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mmengine.config import Config

from .walk import walk

# Modules in `custom_imports`: the old name, and the modules that register its classes today.
MODULES: dict[str, Sequence[str]] = {
    'engine.hooks': ('poolformer_dense.runner', 'poolformer_dense.report.hook'),
    'engine.reliability': ('poolformer_dense.runner',),
}
# Registered types: the old name, and today's or None for what the Runner does by itself.
TYPES: dict[str, str | None] = {
    'StrictLoadHook': None,
    'IntactResumeHook': None,
    'ExactResumeHook': None,
}
# Arguments of backbones: the old name, and today's.
BACKBONE_ARGUMENTS: dict[str, str] = {'ops': 'backend'}


def modernize(
    cfg: Config,
    modules: Mapping[str, Sequence[str]] = MODULES,
    types: Mapping[str, str | None] = TYPES,
    arguments: Mapping[str, str] = BACKBONE_ARGUMENTS,
) -> list[str]:
    """Replace the names of earlier versions in a config, in place.

    Args:
        cfg: The config as it was read, before what it names is imported.
        modules: As `MODULES`.
        types: As `TYPES`.
        arguments: As `BACKBONE_ARGUMENTS`.

    Returns:
        What was changed, in words; nothing if the config has today's names.
    """
    changes = []
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    if old := [name for name in imports if name in modules]:
        today = [new for name in imports for new in modules.get(name, [name])]
        cfg.custom_imports.imports = list(dict.fromkeys(today))
        changes += [f'{name} is now {" and ".join(modules[name])}' for name in old]
    for place, node in list(walk(cfg)):
        if isinstance(node, dict) and place.split('.')[-1] == 'backbone':
            for name in [name for name in node if name in arguments]:
                node[arguments[name]] = node.pop(name)
                changes.append(f'{place}.{name} is now {arguments[name]}')
        # A node that is dropped has to leave the one that holds it.
        keys = node if isinstance(node, dict) else range(len(node)) if type(node) is list else ()
        for key in reversed(list(keys)):
            kind = node[key].get('type') if isinstance(node[key], dict) else None
            if not isinstance(kind, str) or kind not in types:
                continue
            if new := types[kind]:
                node[key]['type'] = new
            else:
                del node[key]
            changes.append(f'{kind} is now {new}' if new else f'{kind} is no longer needed')
    return list(dict.fromkeys(changes))
