"""RetinaNet with PoolFormer-S12, without normalisation."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(norm='NoNorm', init_cfg=None))
