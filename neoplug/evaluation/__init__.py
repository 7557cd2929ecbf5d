"""Evaluation on held-out text: the fixed metrics, probes, selection of the best checkpoint, and WordNet questions.

Imported by `runs` and what lies above it. Does not belong here: training (`training`), the list of metric names, which
recipes need as well (`registry.measures`).
"""
