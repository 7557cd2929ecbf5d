"""The machine: its hardware, package versions, memory allocator and data types, and what works on it (`doctor`).

Imported by everything above. Does not belong here: anything that reads a recipe or a model.
"""
