"""RetinaNet with PoolFormer-S12, without token mixing."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(
    backbone=dict(token_mixers='IdentityMixing', init_cfg=dict(checkpoint='metaformer_id_s12'))
)
