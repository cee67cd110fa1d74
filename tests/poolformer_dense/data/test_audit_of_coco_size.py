"""The quick part is quick on a file of the size of COCO's training annotations."""

from __future__ import annotations

import json
import resource
import time

import numpy as np
import pytest

from poolformer_dense.config.datasets import named_sources
from poolformer_dense.config.load import load_config
from poolformer_dense.data.audit import audit

NUM_IMAGES, NUM_OBJECTS = 118_000, 860_000


@pytest.mark.slow
def test_coco_size(root, tmp_path, capsys):
    rng = np.random.default_rng(0)
    images = [
        dict(id=i, file_name=f'{i:012d}.jpg', width=640, height=480) for i in range(NUM_IMAGES)
    ]
    categories = [dict(id=i, name=str(i)) for i in range(80)]
    path = tmp_path / 'instances.json'
    with path.open('w') as file:
        file.write(f'{{"images": {json.dumps(images)}, "categories": {json.dumps(categories)}')
        file.write(', "annotations": [')
        for i in range(NUM_OBJECTS):
            points = rng.integers(20000, 30000, 2 * rng.integers(5, 35)) / 100
            annotation = dict(
                id=i + 1, image_id=i % NUM_IMAGES, category_id=i % 80, bbox=[200, 200, 99, 99],
                area=700.1, iscrowd=0, segmentation=[points.tolist()],
            )  # fmt: skip
            file.write((', ' if i else '') + json.dumps(annotation))
        file.write(']}')
    (tmp_path / 'images').mkdir()
    for image in images:
        (tmp_path / 'images' / image['file_name']).touch()
    cfg = load_config(str(root / 'configs/mask_rcnn_poolformer_s12.py'))
    cfg.train_dataloader.dataset.update(
        data_root=str(tmp_path),
        ann_file=path.name,
        data_prefix=dict(img='images/'),
        metainfo=dict(classes=tuple(category['name'] for category in categories)),
    )
    start = time.process_time()
    (result,) = audit(named_sources(cfg, ['train'])[0], quick=True)[0]
    spent = time.process_time() - start
    gigabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    with capsys.disabled():
        size = path.stat().st_size / 1e6
        print(f'\n{size:.0f} MB: {spent:.1f} s of one core, {gigabytes:.1f} GB at most')
    assert result.faults == []
    assert spent < 60
