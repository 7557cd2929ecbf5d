"""Treatments, one file each: interventions on the training data or the model, for any arm."""
