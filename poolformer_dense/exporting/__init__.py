"""Detectors and segmentors as ONNX files and as programs of torch.export, compared with the model.

The parts: `graphs` and `nms` (what is computed), `program` and `onnx_file` (tracing it, and the two
kinds of files), `exporter` (from a model to a file) and `parity` (the comparison).
"""
