"""Conformance tests for plugin authors, one kit for each kind of plugin, and tiny models of many families.

Imported by `cli`, by tests and by third parties; all names in `__all__` are public. Does not belong here: tests of
neoplug itself.

`examples`, `check_loss`, `check_token_weight`, and `examine` with their kits, need hypothesis:
`pip install 'neoplug[check]'`.
"""

from neoplug.testing.adapters import adapter_kit, check_adapter
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
from neoplug.testing.optimizers import OPTIMIZER, check_optimizer
from neoplug.testing.preparations import PREPARATION, check_prepare
from neoplug.testing.probes import PROBE, check_probe
from neoplug.testing.schedules import SCHEDULE, check_schedule
from neoplug.testing.search import Broken, Finding, Kit, NotApplicable, examine
from neoplug.testing.sources import SOURCE, check_source
from neoplug.testing.stops import STOP, check_stop
from neoplug.testing.token_weights import TOKEN_WEIGHT, check_token_weight
from neoplug.testing.treatments import TREATMENT, check_treatment

# Hook -> the properties of the plugins that implement it.
KITS: dict[str, Kit] = {
    "open_source": SOURCE,
    "prepare_student": PREPARATION,
    "add_adapter": adapter_kit(),
    "make_optimizer": OPTIMIZER,
    "rate": SCHEDULE,
    "edit_documents": TREATMENT,
    "edit_batch": TREATMENT,
    "token_loss": LOSS,
    "token_weight": TOKEN_WEIGHT,
    "should_stop": STOP,
    "on_evaluate": PROBE,
}
# Hook with a kit -> the other hooks that the kit calls.
CALLED: dict[str, tuple[str, ...]] = {
    "add_adapter": (
        "check", "penalty", "on_step_end", "base_weights", "save_adapter", "load_adapter", "merge_adapter",
        "state_dict", "load_state_dict",
    ),
    "on_evaluate": ("after_load",),
    "should_stop": ("state_dict", "load_state_dict"),
    "token_loss": ("token_gradient", "token_loss_sparse", "token_gradient_sparse"),
}  # fmt: skip

__all__ = [
    "CALLED",
    "KITS",
    "LOSS",
    "OPTIMIZER",
    "PREPARATION",
    "PROBE",
    "SCHEDULE",
    "SOURCE",
    "STOP",
    "TOKEN_WEIGHT",
    "TREATMENT",
    "Broken",
    "Example",
    "Finding",
    "Kit",
    "NotApplicable",
    "adapter_kit",
    "call",
    "check_adapter",
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
    "check_optimizer",
    "check_prepare",
    "check_probe",
    "check_schedule",
    "check_shape",
    "check_shift",
    "check_source",
    "check_splits",
    "check_stop",
    "check_teacher_gradient",
    "check_token_weight",
    "check_treatment",
    "check_zero_where_equal",
    "examine",
    "examples",
    "value",
]
