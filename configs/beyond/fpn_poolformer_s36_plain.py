"""Semantic FPN with PoolFormer-S36 on ADE20K, tested without rounding the size to multiples of 32.

Command: tools/dist_test.sh configs/beyond/fpn_poolformer_s36_plain.py CHECKPOINT 8
Hardware: 8 GPUs x 4 images.
Published mIoU: 41.61 (mmsegmentation's metafile, for its own training; its README prints 40.64).
Ours: not run.
"""

_base_ = [
    '../_base_/fpn_poolformer.py',
    '../_base_/ade20k_plain.py',
    '../_base_/schedule_ade20k_40k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='s36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s36')),
)
