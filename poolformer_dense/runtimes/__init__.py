"""Exported files as models: `runtime` runs them, `exported` makes the toolboxes' results of it."""

# By what --to names; an ``.xml`` has a ``.bin`` beside it.
SUFFIXES = {'onnx': '.onnx', 'openvino': '.xml', 'torch-export': '.pt2'}
# The shortest side of an image in an export of any size: what the deepest stage has one pixel for.
SMALLEST = 32
