"""RetinaNet with PoolFormer-S12, without token mixing."""

_base_ = '../retinanet_poolformer_s12.py'
url = 'https://github.com/sail-sg/poolformer/releases/download/v1.0/metaformer_id_s12.pth.tar'
model = dict(backbone=dict(token_mixers='IdentityMixing', init_cfg=dict(checkpoint=url)))
