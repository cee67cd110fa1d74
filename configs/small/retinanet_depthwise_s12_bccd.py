"""RetinaNet with PoolFormer-S12 on BCCD, mixed by a 3x3 depthwise convolution, from scratch.

Command: tools/train.py configs/small/retinanet_depthwise_s12_bccd.py --amp
Hardware: one CPU core with AMX, in under an hour; on others, leave out --amp.
"""

_base_ = [
    '_base_/retinanet_small.py',
    '_base_/bccd.py',
    '../_base_/mmdet_runtime.py',
    '_base_/schedule_bccd.py',
]

model = dict(backbone=dict(token_mixers='DepthwiseConv'))
default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP')
)
work_dir = 'work_dirs/small/retinanet_depthwise_s12_bccd'
