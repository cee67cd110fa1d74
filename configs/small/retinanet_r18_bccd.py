"""RetinaNet with ResNet-18 on BCCD, from scratch: the yardstick.

Nothing is frozen and its norms are trained: the toolboxes' defaults freeze a stem that
would be random here.

Command: tools/train.py configs/small/retinanet_r18_bccd.py --amp
Hardware: one CPU core with AMX, in under an hour; on others, leave out --amp.
"""

_base_ = [
    '_base_/retinanet_small.py',
    '_base_/bccd.py',
    '../_base_/mmdet_runtime.py',
    '_base_/schedule_bccd.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        out_indices=(1, 2, 3),
        frozen_stages=-1,
        norm_eval=False,
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    neck=dict(in_channels=[128, 256, 512]),
)
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP')
)
work_dir = 'work_dirs/small/retinanet_r18_bccd'
