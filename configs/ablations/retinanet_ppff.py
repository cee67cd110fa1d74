"""RetinaNet with PoolFormer-S12 and spatial MLPs (a matrix over all tokens) in stages 3 and 4."""

_base_ = '../retinanet_poolformer_s12.py'
fc = dict(type='SpatialMLP', interpolate=True)
mixers = ['Pooling', 'Pooling', dict(resolution=(14, 14), **fc), dict(resolution=(7, 7), **fc)]
model = dict(
    backbone=dict(token_mixers=mixers, init_cfg=dict(checkpoint='metaformer_ppff_s12_224'))
)
