"""RetinaNet with PoolFormer-S12 and SiLU activations."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(activation='SiLU', init_cfg=None))
