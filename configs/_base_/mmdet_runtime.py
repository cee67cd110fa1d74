_base_ = 'mmdet::_base_/default_runtime.py'

# The hooks for saving, resuming, preemption, the guard and dirty data: docs/reliability.md.
custom_imports = dict(
    imports=['backbones', 'poolformer_dense.runner', 'poolformer_dense.report.hook'],
    allow_failed_imports=False,
)
# It also resumes exactly, ends in good order when preempted, and loads strictly and safely.
runner_type = 'DenseRunner'
default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook', minutes=30),
    numerical_guard=dict(type='NumericalGuardHook'),
    dirty_data=dict(type='DirtyDataHook'),
    report=dict(type='ReportHook'),
)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
