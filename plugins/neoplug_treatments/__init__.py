"""Treatments: what changes the training of any arm; one file each."""
