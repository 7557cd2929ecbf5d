"""Reading of rows: sources, file formats, the meaning of columns, and the report of what was dropped and why.

Imported by `data` alone. Does not belong here: tokenisation (`encode`), storing tokens (`store`).
"""
