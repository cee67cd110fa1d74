"""RetinaNet with PoolFormer-S12 on BCCD, without token mixing, from scratch.

Command: tools/train.py configs/small/retinanet_identity_s12_bccd.py
Hardware: two CPU cores.
"""

_base_ = 'retinanet_poolformer_s12_bccd.py'
model = dict(backbone=dict(token_mixers='IdentityMixing'))
work_dir = 'work_dirs/small/retinanet_identity_s12_bccd'
