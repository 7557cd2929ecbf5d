"""Messages to users: their form and exit codes, and text from outside made fit to be part of them.

Imported by all other modules. Does not belong here: what is checked (the layers above).
"""

from neoplug.errors.messages import (
    EXCERPT,
    SHOWN_PROBLEMS,
    AnswerError,
    DamageError,
    DiskError,
    DivergenceError,
    Interrupted,
    Mark,
    NeoplugError,
    OptionError,
    Path,
    PluginError,
    Problem,
    RecipeError,
    RunError,
    UsageError,
    did_you_mean,
    innermost,
    line_in,
    lines_of,
    of_package,
    place_of,
    plugin_errors,
)
from neoplug.errors.text import redacted

__all__ = [
    "EXCERPT",
    "SHOWN_PROBLEMS",
    "AnswerError",
    "DamageError",
    "DiskError",
    "DivergenceError",
    "Interrupted",
    "Mark",
    "NeoplugError",
    "OptionError",
    "Path",
    "PluginError",
    "Problem",
    "RecipeError",
    "RunError",
    "UsageError",
    "did_you_mean",
    "innermost",
    "line_in",
    "lines_of",
    "of_package",
    "place_of",
    "plugin_errors",
    "redacted",
]
