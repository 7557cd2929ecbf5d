"""Probes, one file each: measurements in addition to the evaluation metrics."""
