"""The conformance kit for authors of plugins, and tiny models of many families (`neoplug.testing.families`)."""

from neoplug.testing.conformance import (
    Example,
    call,
    check_closed_form,
    check_extremes,
    check_finite_differences,
    check_inputs_untouched,
    check_loss,
    check_no_tokens,
    check_not_negative,
    check_rows_alone,
    check_shape,
    check_shift,
    check_zero_where_equal,
    examples,
    exemptions,
    value,
)
from neoplug.testing.token_weights import check_token_weight

__all__ = [
    "Example",
    "call",
    "check_closed_form",
    "check_extremes",
    "check_finite_differences",
    "check_inputs_untouched",
    "check_loss",
    "check_no_tokens",
    "check_not_negative",
    "check_rows_alone",
    "check_shape",
    "check_shift",
    "check_token_weight",
    "check_zero_where_equal",
    "examples",
    "exemptions",
    "value",
]
