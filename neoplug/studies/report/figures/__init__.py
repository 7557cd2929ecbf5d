"""The figures of a report: inline SVG with real text, whose colours are those of the page.

Each function returns a `Figure`, or None where there is nothing to draw. Imported by the page of the report. Does not
belong here: what is computed (`statistics`, `summary`); positions are values of the study's tables and summary.
"""
