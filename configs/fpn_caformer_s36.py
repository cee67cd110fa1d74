"""Semantic FPN with CAFormer-S36 on ADE20K, 40,000 iterations.

Command: tools/dist_train.sh configs/fpn_caformer_s36.py 8
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
        type='CAFormer',
        arch='s36',
        init_cfg=dict(type='Pretrained', checkpoint='caformer_s36'),
    ),
)
