"""Semantic FPN with ResNet-18 on CamVid, from scratch: the yardstick.

Nothing is frozen and its norms are trained: the toolboxes' defaults freeze a stem that
would be random here.

Command: tools/train.py configs/small/fpn_r18_camvid.py --amp
Hardware: one CPU core with AMX, in under an hour; on others, leave out --amp.
"""

_base_ = [
    '_base_/fpn_small.py',
    '_base_/camvid.py',
    '_base_/schedule_camvid.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='ResNet',
        depth=18,
        out_indices=(0, 1, 2, 3),
        norm_cfg=dict(type='BN', requires_grad=True),
    ),
    neck=dict(in_channels=[64, 128, 256, 512]),
)
default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=450, max_keep_ckpts=1, save_best='mIoU'),
)
work_dir = 'work_dirs/small/fpn_r18_camvid'
