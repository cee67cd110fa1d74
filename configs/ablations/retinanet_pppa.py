"""RetinaNet with PoolFormer-S12 and attention in stage 4."""

_base_ = '../retinanet_poolformer_s12.py'
arch = dict(type='MetaFormer', arch='metaformer_pppa_s12_224')
model = dict(backbone=dict(**arch, init_cfg=dict(checkpoint='metaformer_pppa_s12_224')))
