"""Predictions for files, folders and videos."""
