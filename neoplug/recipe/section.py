"""The base of all sections of a recipe, and the types of values that they share."""

from typing import Annotated

from pydantic import ConfigDict, Field

from neoplug.registry.strict_model import StrictModel

Positive = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class Section(StrictModel):
    """A section: strict and immutable."""

    model_config = ConfigDict(frozen=True)
