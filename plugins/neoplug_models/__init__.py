"""Plugins that change a model before training, one file each: quantised loading (`load`) and pruning (`prepare`)."""
