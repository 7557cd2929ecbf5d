"""Losses: one file each, one number per answer token. `divergence` holds what those with a temperature share."""
