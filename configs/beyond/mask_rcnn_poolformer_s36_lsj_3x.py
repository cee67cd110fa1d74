"""Mask R-CNN with PoolFormer-S36 on COCO, large-scale jitter, 36 epochs.

Command: tools/dist_train.sh configs/beyond/mask_rcnn_poolformer_s36_lsj_3x.py 8
Hardware: 8 GPUs x 2 images. Published box / mask AP: none for this recipe. Ours: not run.
"""

_base_ = [
    '../_base_/mask_rcnn_poolformer.py',
    '../_base_/coco_lsj.py',
    '../_base_/schedule_coco_3x.py',
    '../_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(arch='s36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s36')),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
