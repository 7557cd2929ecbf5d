"""A plugin whose import fails because of a missing shared library."""

raise ImportError("libexample.so.3: cannot open shared object file")
