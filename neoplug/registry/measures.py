"""The metrics of evaluation: the one list of their names, titles, units and directions.

Cards, tables, trackers, best-checkpoint rules and the recipe's checks read it; `evaluation` computes them. All values
are means over answer tokens of held-out text, at temperature 1, but for perplexity, which is exp(cross_entropy).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One metric of evaluation.

    name               its key in results, and in `evaluate.metric_for_best_model`
    title              for tables
    unit               "nats" per answer token, "share" from 0 to 1, "cosine" from -1 to 1, or "" (perplexity)
    greater_is_better  None where neither direction is better
    needs_teacher      compares student and teacher: absent in runs without a teacher
    """

    name: str
    title: str
    unit: str
    greater_is_better: bool | None
    needs_teacher: bool


# In the order in which tables show them.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("forward_kl", "forward KL", "nats", greater_is_better=False, needs_teacher=True),
        Measure("reverse_kl", "reverse KL", "nats", greater_is_better=False, needs_teacher=True),
        Measure("jsd", "JSD", "nats", greater_is_better=False, needs_teacher=True),
        Measure("cross_entropy", "cross-entropy", "nats", greater_is_better=False, needs_teacher=False),
        Measure("perplexity", "perplexity", "", greater_is_better=False, needs_teacher=False),
        Measure("top1_agreement", "top-1 agreement", "share", greater_is_better=True, needs_teacher=True),
        Measure("top10_mass_share", "top-10 mass", "share", greater_is_better=True, needs_teacher=True),
        Measure("entropy", "entropy", "nats", greater_is_better=None, needs_teacher=False),
        Measure("kd_ce_cosine", "KD-CE cosine", "cosine", greater_is_better=None, needs_teacher=True),
    )
}
# Those that can tell which of several checkpoints is best; first the ones that every run has.
RANKING: dict[str, Measure] = {
    measure.name: measure
    for measure in sorted(MEASURES.values(), key=lambda measure: measure.needs_teacher)
    if measure.greater_is_better is not None
}
