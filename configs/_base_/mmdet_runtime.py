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
# Test-time augmentation of detectors (tools/test.py --tta); the data bases say with which scales.
tta_model = dict(
    type='DetTTAModel',
    tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(vis_backends=vis_backends)
