"""The conformance kit for authors of plugins, and tiny models of many families (`neoplug.testing.families`).

`check_loss` and `examine` need hypothesis: `pip install 'neoplug[check]'`.
"""

from neoplug.testing.conformance import (
    EXEMPTIONS,
    PROPERTIES,
    Broken,
    check_chunks,
    check_closed_form,
    check_finite,
    check_finite_differences,
    check_inputs_untouched,
    check_large_vocabulary,
    check_masked,
    check_no_tokens,
    check_not_negative,
    check_shape,
    check_shift,
    check_splits,
    check_teacher_gradient,
    check_zero_where_equal,
    exemptions,
)
from neoplug.testing.examples import Example, call, examples, value
from neoplug.testing.search import Finding, check_loss, examine
from neoplug.testing.token_weights import check_token_weight

__all__ = [
    "EXEMPTIONS",
    "PROPERTIES",
    "Broken",
    "Example",
    "Finding",
    "call",
    "check_chunks",
    "check_closed_form",
    "check_finite",
    "check_finite_differences",
    "check_inputs_untouched",
    "check_large_vocabulary",
    "check_loss",
    "check_masked",
    "check_no_tokens",
    "check_not_negative",
    "check_shape",
    "check_shift",
    "check_splits",
    "check_teacher_gradient",
    "check_token_weight",
    "check_zero_where_equal",
    "examine",
    "examples",
    "exemptions",
    "value",
]
