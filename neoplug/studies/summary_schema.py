"""The content of a study's summary.json: what its planned comparisons, models, ranks and rates say.

null stands for what cannot be computed, such as an interval from one seed.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Interval = tuple[float, float]
Answer = Literal["yes", "no", "undecided"]


class Part(BaseModel):
    """A part of the summary."""

    model_config = ConfigDict(frozen=True)


class BothNoises(Part):
    """A comparison over new seeds and new documents, from the sums of each document."""

    interval: Interval = Field(description="95 % interval for the difference on all documents like the test half's")
    degrees: float | None = Field(description="degrees of freedom of its t quantile; null where nothing varies")
    documents: int = Field(description="documents of the test half")
    seed_sd: float = Field(description="standard deviation of the difference over seeds")
    document_sd: float = Field(description="standard deviation of the difference over documents")
    rest_sd: float = Field(description="standard deviation of what neither seed nor document explains")


class PooledResult(Part):
    """A comparison by the linear model of all arms with the seed as block; exploratory, not adjusted."""

    interval: Interval = Field(description="95 % t interval with the variance pooled over all arms")
    p: float = Field(description="two-sided p of no difference")


class ImprovementResult(Part):
    """How often the arm is better than the control, without a test; a tie counts as half."""

    wins: int = Field(description="seeds at which the arm is better")
    ties: int = Field(description="seeds at which both are equal")
    losses: int = Field(description="seeds at which the arm is worse")
    paired: float = Field(description="share of the seeds")
    unpaired: float = Field(description="share of all pairs of a run of the arm and a run of the control")


class ContrastResult(Part):
    """One planned comparison."""

    family: str = Field(description="name of the contrast in the study file")
    metric: str = Field(description="metric, on the test half")
    arm: str = Field(description="levels of the arm, joined by `/`")
    control: str = Field(description="levels of its control")
    estimate: float | None = Field(description="mean over seeds of arm minus control, whichever direction is better")
    interval: Interval | None = Field(description="95 % paired t interval over seeds, unadjusted; null for n < 2")
    p: float | None = Field(description="paired t test of no difference, two-sided, unadjusted")
    p_adjusted: float | None = Field(description="p, adjusted for all comparisons of the family by Holm's method")
    p_equivalence: float | None = Field(
        description="two one-sided tests (TOST) against the margin, adjusted by Holm's method; null without a margin"
    )
    equivalent: bool | None = Field(
        description="whether p_equivalence is at most 0.05: the difference is within the margin"
    )
    smallest_detectable: float | None = Field(
        description="true difference that the test finds with power 0.8 at Holm's first step, for the observed spread"
    )
    n: int = Field(description="seeds at which both runs completed")
    interval_adjusted: Interval | None = Field(
        description="95 % for all intervals of the family together (Bonferroni); p_adjusted may be sharper"
    )
    margin: float | None = Field(description="what the study file states as no difference")
    both_noises: BothNoises | None = Field(
        description="seeds and documents together; null without sums per document, or for fewer than 2 seeds"
    )
    pooled: PooledResult | None = Field(description="the same difference by the linear model of all arms")
    improvement: ImprovementResult | None = Field(description="null where neither direction is better, or for n = 0")


class RobustResult(Part):
    """The answer for one metric of one family."""

    family: str = Field(description="name of the contrast in the study file")
    metric: str = Field(description="metric, on the test half")
    robust: Answer = Field(
        description="`no`: a gain is below 0 by its adjusted p, or equivalent to none; `yes`: all gains are above 0 by "
        "their adjusted p, and none is equivalent to none; else `undecided`"
    )
    reason: str = Field(description="how many gains are above 0, below 0, equivalent to none, and undecided")


class ArmResult(Part):
    """The test runs of one arm."""

    arm: str = Field(description="levels of the arm, joined by `/`")
    metric: str = Field(description="metric, on the test half")
    n: int = Field(description="completed test runs with this metric")
    mean: float | None = Field(default=None, description="mean over seeds; null for n = 0, as are the others")
    sd: float | None = Field(default=None, description="standard deviation over seeds; null for n < 2")
    interval: Interval | None = Field(default=None, description="95 % t interval of the mean; null for n < 2")
    interquartile_mean: float | None = Field(
        default=None, description="mean without the lowest and the highest quarter"
    )
    lowest: float | None = Field(default=None, description="lowest value")
    highest: float | None = Field(default=None, description="highest value")


class FTestResult(Part):
    """An F test of a linear model with the seed as block."""

    f: float | None = Field(description="null where the model leaves no residual")
    degrees: tuple[int, int] = Field(description="degrees of freedom of the terms and of the residual")
    p: float = Field(description="unadjusted")


class InteractionResult(FTestResult):
    """Whether the effect of one axis depends on the level of the other."""

    axes: tuple[str, str] = Field(description="the two axes")


class ModelResult(Part):
    """The linear model of a metric over all arms; exploratory."""

    metric: str = Field(description="metric, on the test half")
    arms: FTestResult | None = Field(description="whether any two arms differ")
    interactions: list[InteractionResult] = Field(description="a test for each pair of axes that can be told apart")
    residual_sd: float = Field(description="standard deviation of a score, given its arm and seed")
    seed_sd: float | None = Field(
        description="standard deviation of what a seed does to all arms alike, by a mixed model; a description only"
    )


class RanksResult(Part):
    """How stable the ranks of arms are, as Kendall's tau-b over pairs of seeds or of levels."""

    metric: str = Field(description="metric, on the test half")
    over: str = Field(
        description="`seed`: ranks of all arms; an axis: ranks of the other levels' means, for each level"
    )
    mean: float = Field(description="mean tau over the pairs, from -1 (reversed) to 1 (the same order)")
    lowest: float = Field(description="lowest tau of a pair")
    pairs: int = Field(description="pairs compared; one with all scores tied is left out")
    items: int = Field(description="what is ranked: arms, or combinations of the other axes' levels")


class RatesResult(Part):
    """The good region of a searched key for one arm, on the validation half, at the best values of the other keys."""

    arm: str = Field(description="levels of the arm, joined by `/`")
    key: str = Field(description="searched key, as a column of results.csv")
    best: float = Field(description="value with the best mean over the tuning seeds")
    lowest: float = Field(description="lowest value of the region: all tried values in it are within the margin")
    highest: float = Field(description="highest value of the region")
    width: float = Field(description="log10(highest / lowest)")
    open: bool = Field(description="the region ends at the lowest or highest tried value: its width is a lower bound")


class ReferenceResult(Part):
    """A model that an arm's students are to be seen against."""

    arm: str = Field(description="levels of the arm, joined by `/`")
    reference: str = Field(description="`untrained`: the student before training; or `teacher`")
    values: dict[str, float | None] = Field(description="metric of the study -> value on the test half")


class Summary(Part):
    """The content of summary.json."""

    format: Literal[1] = Field(default=1, description="version of this format")
    contrasts: list[ContrastResult] = Field(description="the planned comparisons, by family, metric and arm")
    robust: list[RobustResult] = Field(description="the answer for each metric and family")
    arms: list[ArmResult] = Field(description="each arm's test runs, for each metric")
    references: list[ReferenceResult] = Field(description="the untrained student and the teacher of each arm")
    models: list[ModelResult] = Field(description="linear models over all arms, one for each metric")
    ranks: list[RanksResult] = Field(description="stability of ranks over seeds and over the levels of each axis")
    rates: list[RatesResult] = Field(description="good regions of searched keys; empty without a search or a margin")
    remarks: list[str] = Field(description="what is missing, and what the number of seeds cannot show, in sentences")
