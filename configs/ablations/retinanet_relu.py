"""RetinaNet with PoolFormer-S12 and ReLU activations."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(activation='ReLU', init_cfg=None))
