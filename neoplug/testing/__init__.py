"""Conformance tests for plugin authors, one kit for each kind of plugin, and tiny models of many families.

Imported by `cli`, by tests and by third parties; all names in `__all__` are public. Does not belong here: tests of
neoplug itself.

`examples`, `check_loss`, `check_token_weight`, and `examine` with their kits, need hypothesis:
`pip install 'neoplug[check]'`.
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from neoplug.testing.adapters import adapter_kit, check_adapter
    from neoplug.testing.caches import CACHE, check_cache
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
    from neoplug.testing.loading import LOAD, check_load
    from neoplug.testing.loss_examples import Example, call, examples, value
    from neoplug.testing.optimizers import OPTIMIZER, check_optimizer
    from neoplug.testing.preparations import PREPARATION, check_prepare
    from neoplug.testing.probes import PROBE, check_probe
    from neoplug.testing.schedules import SCHEDULE, check_schedule
    from neoplug.testing.search import Broken, Finding, Kit, NotApplicable, examine
    from neoplug.testing.sources import SOURCE, check_source
    from neoplug.testing.stops import STOP, check_stop
    from neoplug.testing.stored_caches import STORED_CACHE, check_stored_cache
    from neoplug.testing.token_weights import TOKEN_WEIGHT, check_token_weight
    from neoplug.testing.trackers import TRACKER, check_tracker
    from neoplug.testing.treatments import TREATMENT, check_treatment

__all__ = [
    "CACHE",
    "CALLED",
    "KITS",
    "LOAD",
    "LOSS",
    "OPTIMIZER",
    "PREPARATION",
    "PROBE",
    "SCHEDULE",
    "SOURCE",
    "STOP",
    "STORED_CACHE",
    "TOKEN_WEIGHT",
    "TRACKER",
    "TREATMENT",
    "Broken",
    "Example",
    "Finding",
    "Kit",
    "NotApplicable",
    "adapter_kit",
    "call",
    "check_adapter",
    "check_cache",
    "check_chunks",
    "check_closed_form",
    "check_finite",
    "check_finite_differences",
    "check_inputs_untouched",
    "check_large_vocabulary",
    "check_load",
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
    "check_stored_cache",
    "check_teacher_gradient",
    "check_token_weight",
    "check_tracker",
    "check_treatment",
    "check_zero_where_equal",
    "examine",
    "examples",
    "value",
]

# Module -> its public names. Each is imported on first use: the kits of models import transformers and peft, which
# those of schedules, stops and trackers need not wait for.
_NAMES = {
    "adapters": ("adapter_kit", "check_adapter"),
    "caches": ("CACHE", "check_cache"),
    "conformance": (
        "LOSS", "check_chunks", "check_closed_form", "check_finite", "check_finite_differences",
        "check_inputs_untouched", "check_large_vocabulary", "check_loss", "check_masked", "check_no_tokens",
        "check_not_negative", "check_shape", "check_shift", "check_splits", "check_teacher_gradient",
        "check_zero_where_equal",
    ),
    "loading": ("LOAD", "check_load"),
    "loss_examples": ("Example", "call", "examples", "value"),
    "optimizers": ("OPTIMIZER", "check_optimizer"),
    "preparations": ("PREPARATION", "check_prepare"),
    "probes": ("PROBE", "check_probe"),
    "schedules": ("SCHEDULE", "check_schedule"),
    "search": ("Broken", "Finding", "Kit", "NotApplicable", "examine"),
    "sources": ("SOURCE", "check_source"),
    "stops": ("STOP", "check_stop"),
    "stored_caches": ("STORED_CACHE", "check_stored_cache"),
    "token_weights": ("TOKEN_WEIGHT", "check_token_weight"),
    "trackers": ("TRACKER", "check_tracker"),
    "treatments": ("TREATMENT", "check_treatment"),
}  # fmt: skip
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name in _MODULES:
        return getattr(import_module(f"neoplug.testing.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'neoplug.testing' has no attribute {name!r}")


class _Kits(Mapping[str, "Kit"]):
    """The properties of the plugins that implement a hook, by hook; the kit of one is imported when it is read.

    names  hook -> name of the kit, or of a function that makes it
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def __getitem__(self, hook: str) -> "Kit":
        kit = __getattr__(self._names[hook])
        made: Kit = kit() if callable(kit) else kit
        return made

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


KITS: Mapping[str, "Kit"] = _Kits(
    {
        "open_source": "SOURCE",
        "load_kwargs": "LOAD",
        "prepare_student": "PREPARATION",
        "encode_teacher": "CACHE",
        "cache_folder": "STORED_CACHE",
        "add_adapter": "adapter_kit",
        "make_optimizer": "OPTIMIZER",
        "rate": "SCHEDULE",
        "edit_documents": "TREATMENT",
        "edit_batch": "TREATMENT",
        "token_loss": "LOSS",
        "token_weight": "TOKEN_WEIGHT",
        "should_stop": "STOP",
        "on_log": "TRACKER",
        "on_measured": "TRACKER",
        "on_evaluate": "PROBE",
    }
)
# Hook with a kit -> the other hooks that the kit calls.
CALLED: dict[str, tuple[str, ...]] = {
    "add_adapter": (
        "check", "penalty", "on_step_end", "base_weights", "save_adapter", "load_adapter", "merge_adapter",
        "state_dict", "load_state_dict",
    ),
    "load_kwargs": ("after_load",),
    "encode_teacher": ("fit_cache", "decode_teacher"),
    "on_evaluate": ("after_load",),
    "should_stop": ("state_dict", "load_state_dict"),
    "on_log": ("check", "open_tracker", "close_tracker"),
    "on_measured": ("check", "open_tracker", "close_tracker"),
    "token_loss": ("token_gradient", "token_loss_sparse", "token_gradient_sparse"),
}  # fmt: skip
