"""Semantic FPN with ConvFormer-S18 on ADE20K, 40,000 iterations.

Command: tools/dist_train.sh configs/fpn_convformer_s18.py 8
Hardware: 8 GPUs x 4 images. Published mIoU: none for this recipe. Ours: not run.
"""

_base_ = [
    '_base_/fpn_poolformer.py',
    '_base_/ade20k.py',
    '_base_/schedule_ade20k_40k.py',
    '_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(
        type='ConvFormer',
        arch='s18',
        init_cfg=dict(type='Pretrained', checkpoint='convformer_s18'),
    ),
)
