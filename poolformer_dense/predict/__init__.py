"""Predictions: `predictor` for images in memory, `media` and `result_files` for files."""
