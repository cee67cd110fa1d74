"""Names in a config that nobody reads, each with its place and the nearest that somebody does."""

from __future__ import annotations

import difflib
import functools
import inspect
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from mmcv.transforms import RandomChoiceResize, RandomResize
from mmengine.config import Config
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.model.weight_init import BaseInit, PretrainedInit
from mmengine.optim import OptimWrapper
from mmengine.runner import (
    BaseLoop,
    EpochBasedTrainLoop,
    IterBasedTrainLoop,
    LogProcessor,
    Runner,
    TestLoop,
    ValLoop,
)
from torch import nn
from torch.distributed import init_process_group
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.utils.data import DataLoader

from ..errors import UserError
from .arguments import Arguments, arguments_of
from .config_file import shown_path
from .registered import find_types, registered_names
from .walk import scoped_nodes, type_name, walk


def _names(*targets: Any) -> frozenset[str]:
    return frozenset().union(*(arguments_of(target).names for target in targets))


# Keys at the top of a config.
KEYS = _names(Runner) - {'cfg'} | {
    'compile', 'custom_imports', 'find_unused_parameters', 'model_wrapper_cfg', 'prepare_data',
    'runner_type', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip
_LOADER = _names(DataLoader) | {'num_batch_per_epoch'}
# What mmengine reads of nodes that may be without a type.
TYPELESS = {
    'train_dataloader': _LOADER,
    'val_dataloader': _LOADER,
    'test_dataloader': _LOADER,
    'train_cfg': _names(EpochBasedTrainLoop, IterBasedTrainLoop) | {'by_epoch'},
    'val_cfg': _names(ValLoop),
    'test_cfg': _names(TestLoop),
    'auto_scale_lr': frozenset({'enable', 'base_batch_size'}),
    'env_cfg': frozenset(
        {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit', 'report_after'}
    ),
    'env_cfg.dist_cfg': _names(init_process_group) | {'init_backend', 'port'},
    'log_processor': _names(LogProcessor),
    'optim_wrapper.clip_grad': _names(clip_grad_norm_, clip_grad_value_) | {'type'},
    'randomness': frozenset({'seed', 'deterministic', 'diff_rank_seed'}),
}
_PARAMWISE = frozenset({
    'base_total_batch_size', 'bias_decay_mult', 'bias_lr_mult', 'bypass_duplicate',
    'custom_keys', 'dcn_offset_lr_mult', 'dwconv_decay_mult', 'flat_decay_mult',
    'norm_decay_mult',
})  # fmt: skip
# What data sets read of filter_cfg; one of another project may read more.
_FILTERS = frozenset({'filter_empty_gt', 'min_size', 'bbox_min_size'})
_CONSTRUCTORS = (None, 'DefaultOptimWrapperConstructor')
# What is taken out of a node before its class sees the rest.
_TAKEN_OUT: dict[type, frozenset[str]] = {
    Hook: frozenset({'priority'}),
    OptimWrapper: frozenset({'constructor', 'paramwise_cfg'}),
    BaseLoop: frozenset({'by_epoch'}),
    BaseInit: frozenset({'name', 'override'}),
    PretrainedInit: frozenset({'name', 'override'}),
    nn.Module: frozenset({'requires_grad'}),
}
# Classes that build another with what they take by `**kwargs`, and the argument that is its type.
_BUILDERS: dict[type, str] = {
    EMAHook: 'ema_type', RandomResize: 'resize_type', RandomChoiceResize: 'resize_type',
}  # fmt: skip
MARKS = frozenset({'type', '_scope_', '_delete_'})
# Types inside are of another library, though they may have the names of types here.
_FOREIGN = ('Albu',)


# Places in a model where a type is certainly that of a registered class.
_BUILT = re.compile(r'model(\.(data_preprocessor|backbone|neck|\w*head(\.\d+)?(\.loss_\w+)?))?')


class Misspelled(NamedTuple):
    """A name that nobody reads.

    Attributes:
        place: Of the node that has it; empty for the top of the config.
        name: The name.
        owner: The class that does not take it; empty if mmengine would read the node.
        valid: The names that would be read.
    """

    place: str
    name: str
    owner: str
    valid: frozenset[str]

    def __str__(self) -> str:
        nearest = difflib.get_close_matches(self.name, sorted(self.valid), 1, 0.5)
        if self.place.endswith('.type'):
            hint = f'; the nearest is {nearest[0]}' if nearest else ''
            return f'{self.place}: no class is called {self.name!r}{hint}'
        reason = f'{self.owner} takes no {self.name!r}' if self.owner else 'nothing reads it'
        hint = f'; the nearest valid key is {_join(self.place, nearest[0])}' if nearest else ''
        return f'{_join(self.place, self.name)} does not exist ({reason}){hint}'


def check_spelling(cfg: Config) -> None:
    """Raise UserError if a config has names that nobody reads.

    At the top of a config, where it has variables too, these are names that are nearly those of a
    key and are not used anywhere in it.
    """
    for found in misspelled(cfg):
        raise UserError(f'config {_source(cfg, found.name)}: {found}')


def misspelled(cfg: Config) -> Iterator[Misspelled]:
    """Yield the names in a config that nobody reads, and the types that are not registered."""
    yield from _unknown_keys(cfg)
    for key in [key for key in cfg if key in KEYS]:
        # The classes that the nodes on the way to a place are to become.
        around: dict[str, list[Any]] = {}
        for place, node, scope in scoped_nodes(cfg[key], cfg.default_scope, key):
            owners = [
                kind for start in around if place.startswith(f'{start}.') for kind in around[start]
            ]
            if any(getattr(owner, '__name__', '') in _FOREIGN for owner in owners):
                continue
            around[place] = find_types(node.get('type'), scope)
            yield from _unregistered(place, node, scope, around[place])
            taken = arguments_at(cfg, place, node, scope)
            if taken is None and owners and place.endswith('.filter_cfg'):
                taken = Arguments(_FILTERS)
            if taken is None:
                continue
            for name in node:
                if not _takes(taken, name) and not any(_reads(owner, name) for owner in owners):
                    yield Misspelled(place, name, type_name(node), taken.names)


def _unregistered(
    place: str, node: Mapping[str, Any], scope: str | None, found: list[Any]
) -> Iterator[Misspelled]:
    kind = node.get('type')
    foreign = isinstance(kind, str) and '.' in kind
    if kind is None or found or foreign or place in TYPELESS:
        return
    if place.split('.')[0] not in ('model', 'tta_model') or _BUILT.fullmatch(place):
        yield Misspelled(f'{place}.type', str(kind), '', frozenset(registered_names(scope)))


@functools.cache
def _reads(owner: Any, name: str) -> bool:
    """Whether a class names an entry: it may take it from a node inside its own."""
    sources = [base for base in getattr(owner, '__mro__', [owner])[:-1] if base is not nn.Module]
    try:
        return any(f"'{name}'" in inspect.getsource(source) for source in sources)
    except (OSError, TypeError):
        return True


def arguments_at(
    cfg: Config, place: str, node: Mapping[str, Any], scope: str | None
) -> Arguments | None:
    """Return what is read of a node; None if it may hold anything."""
    if place == 'optim_wrapper.paramwise_cfg':
        default = cfg.optim_wrapper.get('constructor') in _CONSTRUCTORS
        return Arguments(_PARAMWISE) if default else None
    if place in TYPELESS and ('type' not in node or 'dataloader' in place or 'clip' in place):
        return Arguments(TYPELESS[place])
    found = [_typed(target, node, scope) for target in find_types(node.get('type'), scope)]
    if not found:
        return None
    return (
        found[0]
        if len(found) == 1
        else Arguments(
            frozenset().union(*(each.names for each in found)),
            max((each.others for each in found), key=('refused', 'ignored', 'used').index),
        )
    )


def _takes(arguments: Arguments, name: str) -> bool:
    # A name that nobody looks at is only a mistake if it is nearly another.
    if name in arguments.names | MARKS or arguments.others == 'used':
        return True
    return arguments.others == 'ignored' and not _near(name, arguments.names)


def _typed(target: Any, node: Mapping[str, Any], scope: str | None) -> Arguments:
    names, others = arguments_of(target)
    if not isinstance(target, type):
        return Arguments(names, others)
    for kind, taken_out in _TAKEN_OUT.items():
        names |= taken_out if issubclass(target, kind) else frozenset()
    if hasattr(target, 'build_iter_from_epoch'):  # a schedule
        names |= {'convert_to_iter_based'}
    if issubclass(target, CheckpointHook):
        others = 'refused'  # of what it takes, mmengine's hands the rest to what refuses it
    if issubclass(target, OptimWrapper) and node.get('constructor') not in _CONSTRUCTORS:
        others = 'used'
    for kind, argument in _BUILDERS.items():
        if issubclass(target, kind):
            built = node.get(argument, inspect.signature(kind).parameters[argument].default)
            found = find_types(built, scope)
            if len(found) == 1:
                inner = arguments_of(found[0])
                return Arguments(names | inner.names, inner.others)
    return Arguments(names, others)


def _unknown_keys(cfg: Config) -> Iterator[Misspelled]:
    tree = cfg.to_dict()
    text = re.sub('#.*', '', cfg.text)
    for name in tree:
        if name in KEYS or not _near(name, KEYS - {'tta_pipeline'}):
            continue
        # A variable is used in the file, or its value stands elsewhere.
        uses = len(re.findall(rf'\b{name}\b', text)) - len(re.findall(rf'(?m)^{name}\s*=', text))
        copies = sum(value == tree[name] for place, value in walk(tree) if place != name)
        if not uses and not (copies and tree[name] not in (None, True, False, 0, 1)):
            yield Misspelled('', name, '', frozenset(KEYS))


def _near(name: str, valid: frozenset[str]) -> bool:
    return bool(difflib.get_close_matches(name, valid, 1, 0.85))


def _join(place: str, name: str) -> str:
    return f'{place}.{name}' if place else name


def _source(cfg: Config, name: str) -> str:
    """The config's file, or the base and the line if the name stands in a single one."""
    found, file = [], cfg.filename
    start = 0
    for number, line in enumerate(cfg.text.splitlines(), 1):
        if os.path.isabs(line) and os.path.isfile(line):  # mmengine puts it before each file
            file, start = line, number
        elif re.search(rf'\b{name}\b', line.partition('#')[0]):
            found.append((file, number - start))
    if len(found) != 1:
        return str(cfg.filename)
    return f'{shown_path(found[0][0])}, line {found[0][1]}'
