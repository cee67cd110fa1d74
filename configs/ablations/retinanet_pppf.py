"""RetinaNet with PoolFormer-S12 and a spatial MLP (a matrix over all tokens) in stage 4."""

_base_ = '../retinanet_poolformer_s12.py'
fc = dict(type='SpatialMLP', interpolate=True)
mixers = ['Pooling', 'Pooling', 'Pooling', dict(resolution=(7, 7), **fc)]
model = dict(
    backbone=dict(token_mixers=mixers, init_cfg=dict(checkpoint='metaformer_pppf_s12_224'))
)
