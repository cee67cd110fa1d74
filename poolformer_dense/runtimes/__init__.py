"""Exported files as models: `runtime` runs them, `exported` makes the toolboxes' results of it."""
