"""Teachers: the protocols `Teacher` and `Signal` (`base`), and the teacher that runs a model (`live`).

Imported by `training` and the layers above it. Does not belong here: losses (`training.objective`), loading of models
(`models`).
"""
