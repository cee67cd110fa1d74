_base_ = 'mmdet::_base_/default_runtime.py'

custom_imports = dict(imports=['backbones', 'engine.hooks'], allow_failed_imports=False)
custom_hooks = [dict(type='EmptyResultHook'), dict(type='StrictLoadHook')]
