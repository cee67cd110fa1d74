# 12 epochs, learning rate steps at 8 and 11, linear warm-up over 500 iterations;
# base batch 8 GPUs x 2 images.
_base_ = 'mmdet::_base_/schedules/schedule_1x.py'

optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-4),
)
