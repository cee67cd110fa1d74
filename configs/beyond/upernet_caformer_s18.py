"""UPerNet with CAFormer-S18 on ADE20K, 160,000 iterations.

Command: tools/dist_train.sh configs/beyond/upernet_caformer_s18.py 8
Hardware: 8 GPUs x 2 images. Published mIoU: 48.9 (arXiv 2210.13452, from JJWCactus/PolyNeXt).
Ours: not run.
"""

_base_ = [
    '../_base_/upernet_poolformer.py',
    '../_base_/ade20k.py',
    '../_base_/schedule_ade20k_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(
        type='CAFormer',
        arch='s18',
        init_cfg=dict(type='Pretrained', checkpoint='caformer_s18'),
    ),
)
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(interval=16000))
