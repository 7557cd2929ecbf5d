"""The machine: hardware, package versions, memory allocator, data types, and a check of what works (`doctor`).

Imported by everything above. Does not belong here: anything that reads a recipe or a model.
"""
