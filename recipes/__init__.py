"""The recipes that neoplug ships, runnable and extendable by name: `extends: base`."""
