# A few minutes on two CPU cores, without pretrained weights: a short warm-up and a cosine decay.
# From scratch, gradients grow from 1 to 10 within the warm-up. With seed 0, the classification loss
# after 3 of 12 epochs is 0.71 unclipped and 0.30 clipped, and the final AP 0.34 and 0.84.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-4, weight_decay=1e-2),
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        by_epoch=True,
        begin=0,
        end=12,
        T_max=12,
        eta_min=1e-5,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=4)
randomness = dict(seed=0)
