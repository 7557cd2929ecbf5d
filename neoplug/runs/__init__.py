"""A run from recipe to result: its inputs, preflight checks, plan and preview, its directory, and the trainer.

Imported by `export`, `testing`, `cli` and the package root. Does not belong here: the training loop and the objective
(`training`), metrics of evaluation (`evaluation`), other formats of the trained model (`export`).
"""
