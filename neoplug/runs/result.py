"""Measurements of a run: `RunState` is carried by checkpoints in state.json, `RunResult` is the content of result.json.

A field that does not apply to a run is absent from the file, not null; null stands for infinity and NaN.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from neoplug.evaluation.model_selection import Best
from neoplug.runs.global_batch import Dealt, GlobalBatch
from neoplug.runs.run_files import validated

Status = Literal["completed", "interrupted", "failed"]
MEASURED = ("after", "trainable_parameters", "total_parameters", "steps", "tokens", "answer_tokens")  # if completed
EvaluationValues = dict[str, Any]  # metric of `registry.measures` -> mean; and `probes`: probe -> its answer


class Sample(BaseModel):
    """One held-out prompt and its greedy continuations, as text; null where the model cannot generate."""

    prompt: str = Field(description="beginning of the first held-out document")
    before: str | None = Field(description="continuation by the student before training")
    after: str | None = Field(
        default=None, description="continuation by the trained student; absent until training ended"
    )


class Measured(BaseModel):
    """What a run has measured so far."""

    before: EvaluationValues | None = Field(
        default=None, description="evaluation of the student before training, with `probes`"
    )
    teacher: EvaluationValues | None = Field(
        default=None,
        description="evaluation of the teacher; of an average of the student's weights, after training; "
        "absent without a teacher",
    )
    sample: Sample | None = Field(
        default=None, description="one prompt with its continuations before and after training"
    )
    weights: dict[str, float] = Field(default={}, description="loss to weight; absent where no weight is calibrated")
    evaluations: list[EvaluationValues] = Field(
        default=[], description="evaluations during training, each with its `step`; absent before the first"
    )
    best: Best | None = Field(
        default=None, description="the best evaluation so far; absent without `evaluate.metric_for_best_model`"
    )
    stopped_early: int | None = Field(
        default=None, description="optimizer step after which a plugin of `stops` ended training; absent where none did"
    )
    stop_reason: str | None = Field(default=None, description="why, and which plugin; absent where none did")
    dealt_anew: list[Dealt] = Field(
        default=[],
        description="each resume with other processes or micro-batches: `step`, from which on rows were dealt so; "
        "absent where there was none",
    )

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as plain data for JSON."""
        return self.model_dump(exclude_unset=True)

    @classmethod
    def read(cls, values: Mapping[str, Any], file: Path) -> Self:
        """Return the content of `file`.

        Raises:
            DamageError: a field is missing or has another type.
        """
        fix = "restore it; or remove it (of a checkpoint, the whole folder) and resume with --resume"
        return validated(cls, values, file, fix)


class RunState(Measured):
    """The content of a checkpoint's state.json, from which a resumed run continues its measurements."""

    step: int = Field(description="optimizer steps done")
    world: int = Field(description="processes that trained")
    seconds: float = Field(description="wall time of the run so far, over all its sessions")
    metrics_sha256: str | None = Field(default=None, description="hash of the lines of metrics.jsonl up to this step")

    def measured(self) -> dict[str, Any]:
        """Return the measurements alone, as plain data."""
        return self.model_dump(exclude_unset=True, exclude={"step", "world", "seconds", "metrics_sha256"})

    def deal(self, now: GlobalBatch, begun: GlobalBatch) -> GlobalBatch | None:
        """Record how the rows of a step are dealt from here on; return how they were before, None if it is the same.

        begun  how they were dealt when the run was started
        """
        last = self.dealt_anew[-1] if self.dealt_anew else begun
        before = GlobalBatch(**{name: getattr(last, name) for name in GlobalBatch.model_fields})
        self.world = now.ranks
        if before == now:
            return None
        self.dealt_anew = [*self.dealt_anew, Dealt(step=self.step, **now.model_dump())]
        return before


class RunResult(Measured):
    """The content of result.json: how a run ended, and what it measured. Plugins add keys with `on_train_end`."""

    model_config = ConfigDict(extra="allow", frozen=True)

    format: Literal[1] = Field(default=1, description="version of this format")
    status: Status = Field(description="how the run ended")
    reason: str | None = Field(default=None, description="why it ended; absent if completed")
    after: EvaluationValues | None = Field(
        None,
        description="evaluation of the trained student, with `probes`; this and all below: absent unless completed",
    )
    trainable_parameters: int | None = Field(default=None, description="parameters of the student that were trained")
    total_parameters: int | None = Field(default=None, description="parameters of the student with its adapter")
    steps: int | None = Field(default=None, description="optimizer steps done")
    tokens: int | None = Field(default=None, description="tokens trained on, over all ranks")
    answer_tokens: int | None = Field(default=None, description="tokens with a loss, over all ranks")
    peak_memory_bytes: int | None = Field(
        default=None, description="peak memory of the main process in bytes: allocated on a GPU, resident on a CPU"
    )
    remarks: list[str] = Field(default=[], description="findings about the result, in sentences")
    seconds: float | None = Field(default=None, description="wall time of the whole run, over all its sessions")

    @model_validator(mode="after")
    def _completed_has_all(self) -> Self:
        """Refuse a completed result without what each completed run measures."""
        if self.status == "completed" and (missing := [key for key in MEASURED if getattr(self, key) is None]):
            raise ValueError(f"a completed run has `{missing[0]}`")
        return self

    def as_dict(self) -> dict[str, Any]:
        """Return the fields that were set, as plain data for JSON; how the run ended comes first."""
        first = ("format", "status", "reason")
        return dict(sorted(super().as_dict().items(), key=lambda item: item[0] not in first))
