"""Teachers: what a teacher says of a batch (`Signal`), and the live model that computes it.

Imported by `training` and what lies above it. Does not belong here: losses on the signal
(`training.objective`), loading of models (`models`).
"""
