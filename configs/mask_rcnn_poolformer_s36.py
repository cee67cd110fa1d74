"""Mask R-CNN with PoolFormer-S36 on COCO, 1x schedule.

Command: tools/dist_train.sh configs/mask_rcnn_poolformer_s36.py 8
Hardware: 8 GPUs x 2 images. Published box / mask AP: 41.0 / 37.7 (arXiv 2111.11418, Table 3).
Ours: not run.
"""

_base_ = [
    '_base_/mask_rcnn_poolformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedule_coco_1x.py',
    '_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(arch='s36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s36')),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
