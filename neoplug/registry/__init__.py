"""Plugins: discovery by entry point or file, validation, construction from options, and dispatch of hooks (pluggy).

Imported by `recipe` and the layers above it. Also here: suggestions for mistyped values, the measured compatibility
matrix and the list of metrics. Does not belong here: reading recipe files (`recipe`), any plugin by name.
"""

from neoplug.registry.discovery import Entry, find, given_classes, installed, source_of
from neoplug.registry.dispatch import Plugins, path_of
from neoplug.registry.opened_source import OpenedSource
from neoplug.registry.options import build
from neoplug.registry.validation import CORE_KEYS, SPECS, answered, class_problems

__all__ = [
    "CORE_KEYS",
    "SPECS",
    "Entry",
    "OpenedSource",
    "Plugins",
    "answered",
    "build",
    "class_problems",
    "find",
    "given_classes",
    "installed",
    "path_of",
    "source_of",
]
