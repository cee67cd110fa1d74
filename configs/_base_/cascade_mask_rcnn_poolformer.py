_base_ = 'mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s12',
        out_indices=(0, 1, 2, 3),
    ),
    neck=dict(in_channels=[64, 128, 320, 512]),
)
