"""Run an exported file with numpy, OpenCV and OpenVINO alone.

    python run_openvino.py model.xml image.jpg picture.png

Segmentors and detectors, exported with --dynamic, RetinaNet with --nms too. The file's description
says how to resize.
"""

import json
import sys

import cv2
import numpy as np
import openvino


def load(path):
    """Return what runs the file, and its description of itself."""
    core = openvino.Core()
    model = core.read_model(path)
    info = model.get_rt_info('poolformer_dense').value
    notes = {key: json.loads(getattr(text, 'value', text)) for key, text in info.items()}
    # Without the hint some CPUs compute in bfloat16.
    compiled = core.compile_model(model, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})

    def run(images):
        found = compiled(images)
        return {each.get_any_name(): found[each] for each in compiled.outputs}

    return run, notes


def resize(image, steps):
    """Resize an image (H, W, 3) as the description says, mostly keeping its ratio."""
    width, height = steps[0]['scale']
    if not steps[0].get('keep_ratio'):
        return cv2.resize(image, (width, height))
    short, long = sorted(image.shape[:2])
    factor = min(max(width, height) / long, min(width, height) / short)
    size = [int(side * factor + 0.5) for side in image.shape[1::-1]]
    return cv2.resize(image, size)


def paste(mask, box, size, threshold):
    """Return a mask (28, 28) over a box at the size of the image, (H, W) bool."""
    weights = []
    for start, end, pixels, bins in zip(box[[1, 0]], box[[3, 2]], size, mask.shape, strict=True):
        at = (np.arange(pixels) + 0.5 - start) / max(end - start, 1e-6) * bins - 0.5
        weights.append(np.maximum(1 - np.abs(at[:, None] - np.arange(bins)), 0))
    rows, columns = weights
    return rows @ mask @ columns.T >= threshold


def draw_objects(image, found, notes, factors, threshold=0.3):
    """Print and draw the detections of one image."""
    for i in np.flatnonzero(found['scores'][0] > threshold):
        box, score = found['boxes'][0, i] / np.tile(factors, 2), found['scores'][0, i]
        name = notes['classes'][found['labels'][0, i]]
        print(f'{name} {score:.3f} {box.round(1).tolist()}')
        if 'masks' in found:
            mask = found['masks'][0, i]
            if mask.dtype == np.uint8:  # exported with --paste
                inside = cv2.resize(mask, image.shape[1::-1], interpolation=0) > 0
            else:
                inside = paste(mask, box, image.shape[:2], notes['mask_threshold'])
            image[inside] = image[inside] // 2 + np.array([0, 127, 0], np.uint8)
        corners = box.round().astype(int)
        cv2.rectangle(image, corners[:2].tolist(), corners[2:].tolist(), (0, 255, 0), 2)
    return image


def draw_labels(image, found, notes):
    """Print the share of each class, and colour its pixels."""
    labels = cv2.resize(found['labels'][0].astype(np.uint16), image.shape[1::-1], interpolation=0)
    for label in np.unique(labels):
        print(f'{notes["classes"][label]} {(labels == label).mean():.3f}')
    colours = np.random.default_rng(0).integers(0, 256, (len(notes['classes']), 3), np.uint8)
    return image // 2 + colours[labels] // 2


def main(path, source, target):
    """Run a file on one image, and write a picture."""
    run, notes = load(path)
    image = cv2.imread(source)
    resized = resize(image, notes['resize'])
    found = run(np.ascontiguousarray(resized[None, ..., ::-1].transpose(0, 3, 1, 2)))
    if 'nms' in notes:
        assert notes['nms']['applied'], 'export with --nms'
        factors = np.divide(resized.shape[1::-1], image.shape[1::-1])
        picture = draw_objects(image, found, notes, factors)
    else:
        picture = draw_labels(image, found, notes)
    cv2.imwrite(target, picture)


if __name__ == '__main__':
    main(*sys.argv[1:])
