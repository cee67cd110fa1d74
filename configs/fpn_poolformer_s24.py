"""Semantic FPN with PoolFormer-S24 on ADE20K, 40,000 iterations.

Command: tools/dist_train.sh configs/fpn_poolformer_s24.py 8
Hardware: 8 GPUs x 4 images. Published mIoU: 40.3 (arXiv 2111.11418, Table 4). Ours: not run.
"""

_base_ = [
    '_base_/fpn_poolformer.py',
    '_base_/ade20k.py',
    '_base_/schedule_ade20k_40k.py',
    '_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='s24', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s24')),
)
