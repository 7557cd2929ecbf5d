"""Reproduction: a run is packed for others, compared with another machine, replayed, and judged step by step.

Imported by `cli`. Does not belong here: what a run writes (`runs`), what a study compares (`studies`).
"""
