"""Sources of rows, one file each. Files, folders and datasets of the hub are read without a plugin."""
