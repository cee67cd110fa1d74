"""RetinaNet with PoolFormer-S12 and attention in stages 3 and 4."""

_base_ = '../retinanet_poolformer_s12.py'
arch = dict(type='MetaFormer', arch='metaformer_ppaa_s12_224')
model = dict(backbone=dict(**arch, init_cfg=dict(checkpoint='metaformer_ppaa_s12_224')))
