"""Traits of an adapter: what it supports, what sizes it and how it is tested, as its class states them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import takewhile
from typing import Any


@dataclass(frozen=True, kw_only=True)
class AdapterTraits:
    """Properties of an adapter that cannot be read from its hooks, stated by its class as `traits`.

        traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r", seedless="all vectors start at 1")

    `neoplug plan`, the tests and the pages on adapters read them; without them an adapter is expected to have none of
    these restrictions. A text is the reason in a few words; an empty text means that the restriction does not apply.

    sized_by           the option, an integer, that sets how many parameters train; `neoplug plan --match` chooses it
    starts_elsewhere   before the first step the student differs from its base
    changes_base       the base weights change during training; the adapter then implements `save_adapter`, so that what
                       is saved fits the original base, or `base_weights`, which the run ships
    cannot_merge       no weight can represent it; its `merge_adapter` raises this reason
    not_on_quantised   its `check` refuses a quantised student
    not_on_experts     it cannot adapt experts whose weights are stored in one tensor
    not_checkpointed   its `check` refuses gradient checkpointing
    seedless           the initialisation does not depend on the seed
    shaped_by_weights  shapes depend on the weights, so that without them only the number of parameters is known
    reads_data         it is initialised from training data, and raises without
    own_options        options that the configuration of peft does not have
    """

    sized_by: str = ""
    starts_elsewhere: str = ""
    changes_base: str = ""
    cannot_merge: str = ""
    not_on_quantised: str = ""
    not_on_experts: str = ""
    not_checkpointed: str = ""
    seedless: str = ""
    shaped_by_weights: str = ""
    reads_data: bool = False
    own_options: tuple[str, ...] = ()

    @classmethod
    def of(cls, adapter: Any) -> AdapterTraits:
        """Return the traits of an adapter, a class or an instance; the defaults if it states none.

        A class variable with the name of a trait, as in `sized_by: ClassVar[str] = "r"`, is the older form: it is read
        with a DeprecationWarning.
        """
        kind = adapter if isinstance(adapter, type) else type(adapter)
        traits = getattr(adapter, "traits", cls())
        options = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
        without = takewhile(lambda base: "traits" not in vars(base), kind.__mro__)
        names = {name for base in without for name in vars(base)} & ({field.name for field in fields(cls)} - options)
        if not names:
            return traits
        stated = {name: getattr(adapter, name) for name in sorted(names)}
        written = ", ".join(f"{name}={value!r}" for name, value in stated.items())
        message = f"{kind.__qualname__} has traits as class variables; write `traits = AdapterTraits({written})`"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return replace(traits, **stated)
