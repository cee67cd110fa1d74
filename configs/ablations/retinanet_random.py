"""RetinaNet with PoolFormer-S12, tokens mixed by frozen random matrices."""

_base_ = '../retinanet_poolformer_s12.py'
mixers = [
    dict(type='RandomMixing', resolution=(side, side), interpolate=True) for side in (56, 28, 14, 7)
]
model = dict(backbone=dict(token_mixers=mixers, init_cfg=None))
