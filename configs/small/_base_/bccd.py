# Blood cells: 364 photographs of 640x480, read at half of that.
prepare_data = 'tools/prepare_data.py bccd brings it'
dataset_type = 'CocoDataset'
data_root = 'data/bccd/'
metainfo = dict(
    classes=('Platelets', 'RBC', 'WBC'),
    palette=[(60, 180, 75), (220, 20, 60), (0, 130, 255)],
)
image_scale = (320, 240)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=image_scale, ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(240, 320), allow_negative_crop=True),
    dict(type='RandomFlip', prob=0.75, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=image_scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        metainfo=metainfo,
        data_root=data_root,
        ann_file='annotations/train.json',
        data_prefix=dict(img='BCCD/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = train_dataloader | dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=train_dataloader['dataset']
    | dict(ann_file='annotations/val.json', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader | dict(
    dataset=val_dataloader['dataset'] | dict(ann_file='annotations/test.json')
)
val_evaluator = dict(type='CocoMetric', metric='bbox', ann_file=data_root + 'annotations/val.json')
test_evaluator = val_evaluator | dict(ann_file=data_root + 'annotations/test.json')
