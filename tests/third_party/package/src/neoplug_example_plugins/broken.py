"""A plugin whose import fails, as one does after half an upgrade."""

raise ImportError("libneighbour.so.3: cannot open shared object file")
