"""Probes: what a recipe measures beside the fixed ruler; one file each."""
