"""Detectors and segmentors as ONNX files and as programs of torch.export, compared with the model.

The parts: `graphs` (what is computed), `program` (tracing it, with weights in bfloat16 on demand),
`onnx_file` (the ONNX file, NMS included) and `parity` (the comparison).
"""
