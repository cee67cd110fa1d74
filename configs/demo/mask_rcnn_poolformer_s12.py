"""Mask R-CNN with PoolFormer-S12 on generated images of shapes, from scratch.

Command: tools/train.py configs/demo/mask_rcnn_poolformer_s12.py
"""

_base_ = [
    '../_base_/mask_rcnn_poolformer.py',
    '_base_/shapes_coco.py',
    '../_base_/mmdet_runtime.py',
    '_base_/schedule_from_scratch.py',
]

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
model = dict(roi_head=dict(bbox_head=dict(num_classes=3), mask_head=dict(num_classes=3)))
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
work_dir = 'work_dirs/demo/mask_rcnn_poolformer_s12'
