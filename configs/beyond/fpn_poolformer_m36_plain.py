"""Semantic FPN with PoolFormer-M36 on ADE20K, tested without rounding the size to multiples of 32.

Command: tools/dist_test.sh configs/beyond/fpn_poolformer_m36_plain.py CHECKPOINT 8
Hardware: 8 GPUs x 4 images.
Published mIoU: 41.95 (mmsegmentation's metafile, for its own training; its README prints 40.91).
Ours: not run.
"""

_base_ = [
    '../_base_/fpn_poolformer.py',
    '../_base_/ade20k_plain.py',
    '../_base_/schedule_ade20k_40k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='m36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_m36')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
