"""A package, so that it comes before the `tests` that mmsegmentation 1.2.2 installs."""
