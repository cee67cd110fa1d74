"""RetinaNet with PoolFormer-S12, tokens pooled over 7x7."""

_base_ = '../retinanet_poolformer_s12.py'
mixer = dict(type='Pooling', pool_size=7)
model = dict(backbone=dict(token_mixers=mixer, init_cfg=None))
