"""RetinaNet with PoolFormer-S12 and layer norm over the channels of each pixel."""

_base_ = '../retinanet_poolformer_s12.py'
model = dict(backbone=dict(norm='ChannelLayerNorm', init_cfg=None))
