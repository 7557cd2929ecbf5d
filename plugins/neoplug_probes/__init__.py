"""Probes: measurements in addition to the fixed evaluation metrics; one file each."""
