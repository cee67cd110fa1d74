"""RetinaNet with PoolFormer-S12 on BCCD, mixed by a 3x3 depthwise convolution, from scratch.

Command: tools/train.py configs/small/retinanet_depthwise_s12_bccd.py
Hardware: two CPU cores.
"""

_base_ = 'retinanet_poolformer_s12_bccd.py'
model = dict(backbone=dict(token_mixers='DepthwiseConv'))
work_dir = 'work_dirs/small/retinanet_depthwise_s12_bccd'
