"""RetinaNet with PoolFormer-S12, tokens mixed by a 3x3 depthwise convolution."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(token_mixers='DepthwiseConv', init_cfg=None))
