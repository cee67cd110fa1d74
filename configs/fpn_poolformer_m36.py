"""Semantic FPN with PoolFormer-M36 on ADE20K, 40,000 iterations.

Command: tools/dist_train.sh configs/fpn_poolformer_m36.py 8
Hardware: 8 GPUs x 4 images. Published mIoU: 42.4 (arXiv 2111.11418, Table 4). Ours: not run.
"""

_base_ = [
    '_base_/fpn_poolformer.py',
    '_base_/ade20k.py',
    '_base_/schedule_ade20k_40k.py',
    '_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='m36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_m36')),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
