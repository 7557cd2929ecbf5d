"""The report of a study: one HTML page and LaTeX tables, from the files of its directory alone.

Imported by `cli`. Does not belong here: a statistic (`statistics`, `summary`); the report shows what these computed.
"""
