"""RetinaNet with PoolFormer-S36 on COCO, 1x schedule.

Command: tools/dist_train.sh configs/retinanet_poolformer_s36.py 8
Hardware: 8 GPUs x 2 images. Published box AP: 39.5 (arXiv 2111.11418, Table 3). Ours: not run.
"""

_base_ = [
    '_base_/retinanet_poolformer.py',
    '_base_/coco_detection.py',
    '_base_/schedule_coco_1x.py',
    '_base_/mmdet_runtime.py',
]

model = dict(
    backbone=dict(arch='s36', init_cfg=dict(type='Pretrained', checkpoint='poolformer_s36')),
)
