"""The section `reference`: what a recipe claims to reproduce, and what its metrics should be."""

from math import sqrt
from typing import Annotated, Self

from pydantic import Field, model_validator

from neoplug.recipe.section import Section, Text

FORMS = (("value", "tolerance"), ("mean", "sd", "n"))


class Target(Section):
    """What a metric should be after training: a `value` and its `tolerance`, or a distribution over seeds.

    `mean`, `sd` (with n - 1) and `n`: of runs of this recipe that differ in the seed alone.
    """

    value: float | None = None
    tolerance: Annotated[float, Field(ge=0)] | None = None
    mean: float | None = None
    sd: Annotated[float, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=2)] | None = None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if tuple(self.model_dump(exclude_none=True)) not in FORMS:
            raise ValueError("a target is either `value` and `tolerance`, or `mean`, `sd` and `n`")
        return self

    @property
    def interval(self) -> tuple[float, float]:
        """The interval of a value that agrees: `value` ± `tolerance`, or the 99 % prediction interval of one more run.

        It is mean ± t s sqrt(1 + 1/n), with the 99.5 % quantile t of Student's distribution with n - 1 degrees of
        freedom.
        """
        from scipy.special import stdtrit

        centre, half = self.value or self.mean or 0.0, self.tolerance or 0.0
        if self.n is not None and self.sd is not None:
            half = float(stdtrit(self.n - 1, 0.995)) * self.sd * sqrt(1 + 1 / self.n)
        return centre - half, centre + half

    def contains(self, value: float) -> bool:
        """Return whether a value agrees."""
        low, high = self.interval
        return low <= value <= high

    def compared(self, value: float) -> str:
        """Return on which side of the interval a value lies, in words and numbers."""
        low, high = self.interval
        return f"{value:.6g}, {'inside' if self.contains(value) else 'outside'} {low:.6g} to {high:.6g}"

    def __str__(self) -> str:
        """Return the target in words and numbers."""
        if self.n is None:
            return f"{self.value:g} ± {self.tolerance:g}"
        return f"mean {self.mean:g}, sd {self.sd:g} over {self.n} seeds"


class Reference(Section):
    """What is published of the run that this recipe describes; it changes nothing of a run.

    `claim`: what the source says, in a sentence; `source`: a paper, code at a commit or a model card, and `table`: the
    table or figure in it. `left_open`: what the source does not state, and what the recipe sets in its place.
    `targets`: metric of [evaluation](../how-to/evaluate.md) or `probes.NAME.KEY` -> its target.
    `adapted`: the source has the setting in other work, such as fine-tuning without a teacher.
    `scale`: the scale that `--scale` brought the recipe to, if any: its targets are those of that scale.
    A recipe that extends another does not inherit its reference.
    """

    claim: Text
    source: Text
    table: Text | None = None
    targets: dict[Text, Target] = {}
    budget: Text | None = None
    hardware: Text | None = None
    left_open: list[Text] = []
    adapted: bool = False
    scale: Text | None = None
