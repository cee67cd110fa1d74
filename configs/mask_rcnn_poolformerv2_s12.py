"""Mask R-CNN with PoolFormerV2-S12 on COCO, 1x schedule.

Command: tools/dist_train.sh configs/mask_rcnn_poolformerv2_s12.py 8
Hardware: 8 GPUs x 2 images. Published box / mask AP: none for this recipe. Ours: not run.
"""

_base_ = [
    '_base_/mask_rcnn_poolformer.py',
    'mmdet::_base_/datasets/coco_instance.py',
    '_base_/schedule_coco_1x.py',
    '_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(
        type='PoolFormerV2',
        arch='s12',
        init_cfg=dict(type='Pretrained', checkpoint='poolformerv2_s12'),
    ),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
