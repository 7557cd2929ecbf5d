"""The machine: hardware, package versions, memory allocator, data types, and tests of its features (`doctor`).

Imported by everything above. Does not belong here: anything that reads a recipe or a model.
"""
