"""Remarks on a finished run, as sentences: whether its teacher could improve the student, and whether it did."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neoplug.recipe.reference import Reference
from neoplug.registry.adapter_traits import AdapterTraits


def remarks(
    result: Mapping[str, Any], reference: Reference | None = None, adapters: Mapping[str, Any] | None = None
) -> list[str]:
    """Return remarks on the results of a run; an empty list where there is nothing to report.

    result    has the metrics of the evaluations under before, after and teacher
    adapters  the run's adapters by name
    """
    about_the_run = [
        *_about_the_scale(reference),
        *_about_the_adapters(adapters or {}),
        *_about_the_resumes(result.get("dealt_anew", [])),
    ]
    before, after, teacher = (result.get(name) or {} for name in ("before", "after", "teacher"))
    if not all("cross_entropy" in metrics for metrics in (before, after, teacher)):
        return about_the_run
    return [*about_the_run, *_about_the_teacher(before, after, teacher), *_about_the_objectives(before, after)]


def _about_the_scale(reference: Reference | None) -> Iterator[str]:
    if reference is not None and reference.scale is not None:
        yield f"The recipe was run at the scale {reference.scale}: models, data and steps are not those of its source."


def _about_the_adapters(adapters: Mapping[str, Any]) -> Iterator[str]:
    for name, adapter in adapters.items():
        if why := AdapterTraits.of(adapter).mixes_documents:
            yield (
                f"What `{name}` computes for a document depends on the other documents of its micro-batch ({why}): "
                "another micro-batch size, and packing, give other results."
            )


def _about_the_resumes(dealt_anew: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if dealt_anew:
        steps = " and ".join(str(dealt["step"]) for dealt in dealt_anew)
        yield (
            f"The run was resumed after step {steps} with other processes or micro-batches (`dealt_anew`): on the same "
            "rows, but dropout drew other numbers than in a run without a break, and sums differ in their last digits."
        )


def _about_the_teacher(
    before: Mapping[str, Any], after: Mapping[str, Any], teacher: Mapping[str, Any]
) -> Iterator[str]:
    students, teachers = before["cross_entropy"], teacher["cross_entropy"]
    if teachers >= students:
        yield (
            "The teacher is no better than the student was before training on this data: its cross-entropy is "
            f"{teachers:.3f} nats per answer token, the student's was {students:.3f}. Imitating it cannot bring the "
            "student closer to this text."
        )
    elif teachers > after["cross_entropy"]:
        yield (
            "The student is now better than its teacher on this data (cross-entropy "
            f"{after['cross_entropy']:.3f} against {teachers:.3f} nats per answer token): imitating it further makes "
            "the student worse on this text."
        )


def _about_the_objectives(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    # Rounded as they are printed, so that a change that cannot be seen is not reported.
    kd, ce = (round(after[name], 3) - round(before[name], 3) for name in ("forward_kl", "cross_entropy"))
    changes = f"forward KL went from {before['forward_kl']:.3f} to {after['forward_kl']:.3f} nats per token, "
    changes += f"cross-entropy from {before['cross_entropy']:.3f} to {after['cross_entropy']:.3f}"
    if kd < 0 < ce:
        yield f"Teacher and text conflict: {changes}. The student moved towards its teacher and away from the text."
    elif ce < 0 < kd:
        yield f"Teacher and text conflict: {changes}. The student moved towards the text and away from its teacher."
    elif kd > 0 and ce > 0:
        yield f"Training did harm: {changes}. Try a lower learning rate or a longer warm-up first."
    if after["kd_ce_cosine"] < -0.1:  # closer to 0 the two gradients are nearly unrelated
        yield (
            "At the end of training, the gradients of forward KL and cross-entropy by the student's logits are opposed "
            f"(cosine {after['kd_ce_cosine']:.2f}): lowering one raises the other."
        )
