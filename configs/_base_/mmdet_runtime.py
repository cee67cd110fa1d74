_base_ = 'mmdet::_base_/default_runtime.py'

# The hooks for saving, resuming, preemption, the guard and dirty data: docs/reliability.md.
custom_imports = dict(
    imports=['backbones', 'poolformer_dense.runner', 'poolformer_dense.report.hook'],
    allow_failed_imports=False,
)
default_hooks = dict(
    logger=dict(type='SteadyLoggerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', minutes=30),
    preemption=dict(type='PreemptionHook'),
    resume=dict(type='IntactResumeHook'),
    numerical_guard=dict(type='NumericalGuardHook'),
    dirty_data=dict(type='DirtyDataHook'),
    report=dict(type='ReportHook'),
)
custom_hooks = [dict(type='EmptyResultHook'), dict(type='StrictLoadHook')]
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
