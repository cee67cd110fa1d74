"""Semantic FPN with PoolFormer-S12 on generated images of shapes, from scratch.

Command: tools/train.py configs/demo/fpn_poolformer_s12.py
"""

_base_ = [
    '../_base_/fpn_poolformer.py',
    '_base_/shapes_ade20k.py',
    '../_base_/schedule_ade20k_40k.py',
    '../_base_/mmseg_runtime.py',
]

model = dict(data_preprocessor=dict(size=(96, 96)), decode_head=dict(num_classes=4))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, end=300, by_epoch=False)]
train_cfg = dict(max_iters=300, val_interval=100)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=100, max_keep_ckpts=1))
auto_scale_lr = dict(base_batch_size=8)
randomness = dict(seed=0)
work_dir = 'work_dirs/demo/fpn_poolformer_s12'
