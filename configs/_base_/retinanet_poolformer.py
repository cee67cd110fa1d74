_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

# RetinaNet's FPN starts at stride 8, so the stride-4 output and its norm are not built.
model = dict(
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s12',
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[128, 320, 512], start_level=0),
)
