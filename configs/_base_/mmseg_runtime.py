# The hooks for saving, resuming, preemption, the guard and dirty data: docs/reliability.md.
custom_imports = dict(
    imports=['backbones', 'poolformer_dense.runner', 'poolformer_dense.report.hook'],
    allow_failed_imports=False,
)
# It also resumes exactly, ends in good order when preempted, and loads strictly and safely.
runner_type = 'DenseRunner'

default_scope = 'mmseg'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='AtomicCheckpointHook', by_epoch=False, interval=4000, minutes=30),
    numerical_guard=dict(type='NumericalGuardHook'),
    dirty_data=dict(type='DirtyDataHook'),
    report=dict(type='ReportHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# Test-time augmentation (tools/test.py --tta); the data bases say with which scales.
tta_model = dict(type='SegTTAModel')
vis_backends = [dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
