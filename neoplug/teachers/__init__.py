"""Teachers: the protocols (`base`), a model in memory (`live`), its stored output (`cached`), the student (`itself`).

Imported by `training` and the layers above it. Does not belong here: losses (`training.objective`), loading of models
(`models`).
"""
