"""Statistics of studies: pure functions of arrays, on top of scipy and statsmodels.

Imported by `studies.summary` and the report. Does not belong here: the shape of a study, files, metric names.

Letters: n seeds, m documents, k comparisons of a family, A arms. A "score" is a value of one metric of one run.
"""

ALPHA = 0.05  # error of every test and family; intervals have the confidence 1 - ALPHA
POWER = 0.8  # at which `smallest_detectable` is stated
