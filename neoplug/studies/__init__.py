"""Studies: the arms of a study file, run over seeds and tuned rates, and what their differences say.

Imported by `cli` and the root package. Does not belong here: how one run is executed (`runs`).
"""
