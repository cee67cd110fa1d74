# As in _base_/retinanet_poolformer.py, with half the channels in neck and head, for small images.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='PoolFormer',
        arch='s12',
        out_indices=(1, 2, 3),
    ),
    neck=dict(in_channels=[128, 320, 512], out_channels=128, start_level=0),
    bbox_head=dict(num_classes=3, in_channels=128, feat_channels=128),
)
