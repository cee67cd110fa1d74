"""RetinaNet with PoolFormer-S12, without residual connections."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(residual=False, init_cfg=None))
