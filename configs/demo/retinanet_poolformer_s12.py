"""RetinaNet with PoolFormer-S12 on generated images of shapes, from scratch: `make demo`.

Command: tools/train.py configs/demo/retinanet_poolformer_s12.py
Hardware: two CPU cores, about 4 minutes.
"""

_base_ = [
    '../_base_/retinanet_poolformer.py',
    '_base_/shapes_coco.py',
    '../_base_/mmdet_runtime.py',
    '_base_/schedule_from_scratch.py',
]

default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1))
model = dict(bbox_head=dict(num_classes=3))
work_dir = 'work_dirs/demo/retinanet_poolformer_s12'
