"""Semantic FPN with PoolFormer-S12 on CamVid, from scratch.

Command: tools/train.py configs/small/fpn_poolformer_s12_camvid.py --amp
Hardware: one CPU core with AMX, in under an hour; on others, leave out --amp.
"""

_base_ = [
    '_base_/fpn_small.py',
    '_base_/camvid.py',
    '_base_/schedule_camvid.py',
    '../_base_/mmseg_runtime.py',
]

default_hooks = dict(
    logger=dict(interval=50),
    checkpoint=dict(interval=450, max_keep_ckpts=1, save_best='mIoU'),
)
work_dir = 'work_dirs/small/fpn_poolformer_s12_camvid'
