"""Treatments: interventions on the training data or the model, for any arm; one file each."""
