"""Evaluation on held-out text: metrics, probes, selection of the best evaluation, remarks, and WordNet questions.

Imported by `runs` and the layers above it. Does not belong here: training (`training`), the list of metric names, which
recipes need as well (`registry.measures`).
"""
