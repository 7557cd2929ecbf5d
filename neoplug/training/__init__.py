"""The training loop and the objective: losses and gradients block by block, the optimizer, checkpoints and metrics.

Imported by `evaluation` and what lies above it. Does not belong here: files of a run but for checkpoints (`runs`), any
loss by name (plugins).
"""
