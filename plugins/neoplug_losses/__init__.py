"""Losses: one file each, one number per answer token. `neoplug.Divergence` is the base of those with a temperature."""
