"""RetinaNet with CAFormer-S36 on COCO, 1x schedule.

Command: tools/dist_train.sh configs/retinanet_caformer_s36.py 8
Hardware: 8 GPUs x 2 images. Published box AP: none for this recipe. Ours: not run.
"""

_base_ = [
    '_base_/retinanet_poolformer.py',
    '_base_/coco_detection.py',
    '_base_/schedule_coco_1x.py',
    '_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(
        type='CAFormer',
        arch='s36',
        init_cfg=dict(type='Pretrained', checkpoint='caformer_s36'),
    ),
)
