"""The evaluation metrics: their names, titles, units, directions, and the sums that they are computed from.

`evaluation` computes them; tables, model cards, trackers, model selection, the recipe's checks and its JSON schema use
this list. All values are means over answer tokens of held-out text at temperature 1, except perplexity, which is
exp(cross_entropy), and the ratios top10_mass_share and kd_ce_cosine.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One metric of evaluation.

    name               its key in results, and in `evaluate.metric_for_best_model`
    title              its name in tables
    unit               "nats" per answer token, "share" from 0 to 1, "cosine" from -1 to 1, or "" (perplexity)
    greater_is_better  None where neither direction is better
    needs_teacher      it compares student and teacher: absent in runs without a teacher
    sums               the additive quantities that it is computed from, columns of `evaluation/NAME.parquet`
    """

    name: str
    title: str
    unit: str
    greater_is_better: bool | None
    needs_teacher: bool
    sums: tuple[str, ...]


# In the order in which tables show them.
MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure("forward_kl", "forward KL", "nats", False, True, ("forward_kl",)),
        Measure("reverse_kl", "reverse KL", "nats", False, True, ("reverse_kl",)),
        Measure("jsd", "JSD", "nats", False, True, ("jsd",)),
        Measure("cross_entropy", "cross-entropy", "nats", False, False, ("cross_entropy",)),
        Measure("perplexity", "perplexity", "", False, False, ("cross_entropy",)),
        Measure("top1_agreement", "top-1 agreement", "share", True, True, ("top1_agreement",)),
        Measure("top10_mass_share", "top-10 mass", "share", True, True, ("top10_mass", "teacher_top10_mass")),
        Measure("entropy", "entropy", "nats", None, False, ("entropy",)),
        Measure(
            "kd_ce_cosine", "KD-CE cosine", "cosine", None, True, ("kd_ce_dot", "kd_squared_norm", "ce_squared_norm")
        ),
    )
}
# Those that can rank checkpoints; first the ones that every run has.
RANKING: dict[str, Measure] = {
    measure.name: measure
    for measure in sorted(MEASURES.values(), key=lambda measure: measure.needs_teacher)
    if measure.greater_is_better is not None
}
