"""RetinaNet with PoolFormer-S12, with SiLU."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(activation='SiLU', init_cfg=None))
