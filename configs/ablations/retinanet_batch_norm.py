"""RetinaNet with PoolFormer-S12 and batch norm."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(norm='BatchNorm', init_cfg=None))
