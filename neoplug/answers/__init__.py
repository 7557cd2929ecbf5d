"""What the hooks of plugins may return: the marks on hook specifications, and the checks of answers against them.

Imported by `hookspecs`, which marks its specifications, and by `registry`, which checks every answer. Does not belong
here: calls of hooks (`registry`).
"""
