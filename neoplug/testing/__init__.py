"""Conformance tests for plugin authors, and tiny models of many families (`neoplug.testing.families`).

Imported by `cli`, by tests and by third parties; all names in `__all__` are public. Does not belong here: tests of
neoplug itself.

`examine`, `examples`, `check_loss` and `check_token_weight` need hypothesis: `pip install 'neoplug[check]'`.
"""

from neoplug.testing.conformance import (
    LOSS,
    check_chunks,
    check_closed_form,
    check_finite,
    check_finite_differences,
    check_inputs_untouched,
    check_large_vocabulary,
    check_loss,
    check_masked,
    check_no_tokens,
    check_not_negative,
    check_shape,
    check_shift,
    check_splits,
    check_teacher_gradient,
    check_zero_where_equal,
)
from neoplug.testing.examples import Example, call, examples, value
from neoplug.testing.search import Broken, Finding, Kit, examine
from neoplug.testing.token_weights import TOKEN_WEIGHT, check_token_weight

__all__ = [
    "LOSS",
    "TOKEN_WEIGHT",
    "Broken",
    "Example",
    "Finding",
    "Kit",
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
    "value",
]
