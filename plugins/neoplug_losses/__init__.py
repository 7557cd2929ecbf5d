"""Losses, one file each: one number per answer token. `neoplug.Softened` is the base of those with a temperature."""
