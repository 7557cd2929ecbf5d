"""Reading of rows: sources, file formats, the mapping of columns, and the report of dropped rows with reasons.

Imported by `data` alone. Does not belong here: tokenisation (`encode`), storing tokens (`store`).
"""
