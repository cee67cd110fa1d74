"""Semantic FPN with PoolFormer-S12 on CamVid, without token mixing, from scratch.

Command: tools/train.py configs/small/fpn_identity_s12_camvid.py
Hardware: two CPU cores.
"""

_base_ = 'fpn_poolformer_s12_camvid.py'
model = dict(backbone=dict(token_mixers='IdentityMixing'))
work_dir = 'work_dirs/small/fpn_identity_s12_camvid'
