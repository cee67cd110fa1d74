"""UPerNet with PoolFormer-S24 on ADE20K, 160,000 iterations.

Command: tools/dist_train.sh configs/beyond/upernet_poolformer_s24.py 8
Hardware: 8 GPUs x 2 images. Published mIoU: none for this recipe. Ours: not run.
"""

_base_ = [
    '../_base_/upernet_poolformer.py',
    '../_base_/ade20k.py',
    '../_base_/schedule_ade20k_160k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(
    backbone=dict(arch='s24', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s24')),
)
train_dataloader = dict(batch_size=2)
default_hooks = dict(checkpoint=dict(interval=16000))
