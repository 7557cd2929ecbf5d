"""Processes of one run: rank, device and collective operations, by accelerate; weights sharded over them, by FSDP2.

Imported by `training` and the layers above it. Does not belong here: what a rank computes, or what the main process
writes.
"""
