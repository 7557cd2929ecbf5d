"""A plugin file that fails on import."""

import a_module_that_nobody_has  # noqa: F401
