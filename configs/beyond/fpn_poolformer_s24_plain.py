"""Semantic FPN with PoolFormer-S24 on ADE20K, tested without rounding the size to multiples of 32.

Command: tools/dist_test.sh configs/beyond/fpn_poolformer_s24_plain.py CHECKPOINT 8
Hardware: 8 GPUs x 4 images.
Published mIoU: 40.12 (mmsegmentation's metafile, for its own training; its README prints 39.35).
Ours: not run.
"""

_base_ = [
    '../_base_/fpn_poolformer.py',
    '../_base_/ade20k_plain.py',
    '../_base_/schedule_ade20k_40k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='s24', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s24')),
)
