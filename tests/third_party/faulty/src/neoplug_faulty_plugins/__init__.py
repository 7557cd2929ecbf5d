"""Plugins with faults."""
