"""Traits of adapters: what a class declares, in the present form and in the older one."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

import pytest

from neoplug import AdapterTraits
from neoplug_adapters.tuner import Tuner


@dataclass(eq=False)
class Plain:
    r: int = 4


@dataclass(eq=False)
class Declared:
    traits: ClassVar[AdapterTraits] = AdapterTraits(sized_by="r", cannot_merge="it is a gate")
    r: int = 4


@dataclass(eq=False)
class Older:
    sized_by: ClassVar[str] = "width"
    reads_data: ClassVar[bool] = True
    width: int = 4
    seedless: bool = True  # an option, which is no trait


def test_without_traits_an_adapter_has_none_of_the_restrictions():
    assert AdapterTraits.of(Plain) == AdapterTraits.of(Plain()) == AdapterTraits()
    assert not any(getattr(AdapterTraits(), trait.name) for trait in fields(AdapterTraits))


def test_traits_are_read_from_a_class_an_instance_and_a_subclass():
    assert all(
        AdapterTraits.of(each) is Declared.traits for each in (Declared, Declared(), type("Sub", (Declared,), {}))
    )
    adapter = Declared()
    adapter.traits = AdapterTraits()
    assert AdapterTraits.of(adapter) == AdapterTraits()


@pytest.mark.parametrize("adapter", [Older, Older()])
def test_the_older_form_is_read_with_a_warning_that_contains_the_new_form(adapter):
    with pytest.warns(DeprecationWarning, match="Older has traits as class variables") as caught:
        traits = AdapterTraits.of(adapter)
    assert traits == AdapterTraits(sized_by="width", reads_data=True)
    written = str(caught[0].message).partition("write `traits = ")[2].rstrip("`")
    assert eval(written, {"AdapterTraits": AdapterTraits}) == traits


def test_a_class_in_the_older_form_adds_to_the_traits_of_its_base():
    with pytest.warns(DeprecationWarning, match="Mine has traits as class variables"):

        @dataclass(eq=False)
        class Mine(Tuner):
            name: ClassVar[str] = "mine"
            not_on_quantised: ClassVar[str] = "it rounds"
            options: list = field(default_factory=list)

    assert AdapterTraits.of(Mine) == Mine.traits == AdapterTraits(sized_by="r", not_on_quantised="it rounds")
    assert Tuner.traits == AdapterTraits(sized_by="r")
