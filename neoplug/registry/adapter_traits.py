"""Traits of an adapter: what its class declares about its size, its restrictions and its initialisation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import takewhile
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AdapterTraits:
    """Properties of an adapter that cannot be read from its hooks; its class declares them as `traits`.

        traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r", seedless="all vectors start at 1")

    `neoplug plan`, the tests and the documentation of adapters read them. The value of a trait that is a restriction
    is its reason in a few words; the default, an empty text, means that the restriction does not apply.

    sized_by           the integer option that sets the number of trainable parameters, as `plan --match` does
    starts_elsewhere   before the first step the student's logits differ from those of its base
    changes_base       the base weights change during training; the adapter then implements `save_adapter`, so that the
                       saved adapter fits the original base, or `base_weights`, which the run stores with it
    cannot_merge       it cannot be merged into the base weights; its `merge_adapter` raises this reason
    not_on_quantised   its `check` refuses a quantised student
    not_on_experts     it cannot adapt experts whose weights are stored in one tensor
    not_checkpointed   its `check` refuses gradient checkpointing
    mixes_documents    what it computes for a document depends on the other documents of the micro-batch, so that the
                       micro-batch's size and packing change the results; a run says so among its remarks
    seedless           the initialisation does not depend on the seed
    shaped_by_weights  its shapes depend on the base weights; without these only its number of parameters is known
    reads_data         it is initialised from training data, and raises an error without data
    own_options        options that the configuration of peft does not have
    """

    sized_by: str = ""
    starts_elsewhere: str = ""
    changes_base: str = ""
    cannot_merge: str = ""
    not_on_quantised: str = ""
    not_on_experts: str = ""
    not_checkpointed: str = ""
    mixes_documents: str = ""
    seedless: str = ""
    shaped_by_weights: str = ""
    reads_data: bool = False
    own_options: tuple[str, ...] = ()

    @classmethod
    def of(cls, adapter: Any) -> AdapterTraits:
        """Return the traits of an adapter, a class or an instance; the defaults if it declares none.

        Class variables with the names of traits, as in `sized_by: ClassVar[str] = "r"`, are the older form: they are
        read with a DeprecationWarning.
        """
        kind = adapter if isinstance(adapter, type) else type(adapter)
        traits = getattr(adapter, "traits", cls())
        options = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
        older = takewhile(lambda base: "traits" not in vars(base), kind.__mro__)
        names = {name for base in older for name in vars(base)} & ({field.name for field in fields(cls)} - options)
        if not names:
            return traits
        declared = {name: getattr(adapter, name) for name in sorted(names)}
        written = ", ".join(f"{name}={value!r}" for name, value in declared.items())
        message = f"{kind.__qualname__} has traits as class variables; write `traits = AdapterTraits({written})`"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return replace(traits, **declared)
