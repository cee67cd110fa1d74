"""Training, evaluating and using MetaFormer detectors and segmentors."""
