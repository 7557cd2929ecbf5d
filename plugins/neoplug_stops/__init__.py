"""Reasons to end training before its last step, for the section `stops`."""
