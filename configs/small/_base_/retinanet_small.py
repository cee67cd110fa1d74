# RetinaNet with half the channels in its neck and head, for small images.
_base_ = '../../_base_/retinanet_poolformer.py'

model = dict(
    neck=dict(out_channels=128),
    bbox_head=dict(num_classes=3, in_channels=128, feat_channels=128),
)
