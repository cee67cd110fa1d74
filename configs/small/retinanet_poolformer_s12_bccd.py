"""RetinaNet with PoolFormer-S12 on BCCD, from scratch.

Command: tools/train.py configs/small/retinanet_poolformer_s12_bccd.py --amp
Hardware: one CPU core with AMX, in under an hour; on others, leave out --amp.
"""

_base_ = [
    '_base_/retinanet_small.py',
    '_base_/bccd.py',
    '../_base_/mmdet_runtime.py',
    '_base_/schedule_bccd.py',
]

default_hooks = dict(
    logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP')
)
work_dir = 'work_dirs/small/retinanet_poolformer_s12_bccd'
