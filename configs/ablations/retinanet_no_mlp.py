"""RetinaNet with PoolFormer-S12, without the channel MLP."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(mlp_ratio=0, init_cfg=None))
