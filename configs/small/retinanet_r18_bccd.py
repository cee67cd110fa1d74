"""RetinaNet with ResNet-18 on BCCD, from scratch: the yardstick.

Nothing is frozen and its norms are trained: the toolboxes' defaults freeze a stem that
would be random here.

Command: tools/train.py configs/small/retinanet_r18_bccd.py
Hardware: two CPU cores.
"""

_base_ = 'retinanet_poolformer_s12_bccd.py'
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
work_dir = 'work_dirs/small/retinanet_r18_bccd'
