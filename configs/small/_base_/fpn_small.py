# Semantic FPN with half the channels in its neck and head, for small images.
_base_ = '../../_base_/fpn_poolformer.py'

model = dict(
    data_preprocessor=dict(size=(256, 256), seg_pad_val=11),
    neck=dict(out_channels=128),
    decode_head=dict(
        in_channels=[128, 128, 128, 128],
        channels=64,
        num_classes=11,
        ignore_index=11,
        norm_cfg=dict(type='BN'),
    ),
)
