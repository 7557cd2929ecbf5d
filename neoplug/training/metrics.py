"""The lines of metrics.jsonl, one for each optimizer step, written at flushes.

Values stay on the device until a flush, the only place that synchronises. A flush refuses values that are not finite,
so a checkpoint that is saved after one holds none of them. K losses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite, nan
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from neoplug.distributed.sharding import whole
from neoplug.environment.memory import peak_resident
from neoplug.errors import DivergenceError, RunError
from neoplug.training.diagnostics import means

CLOCK = ("tokens_per_second", "peak_memory_bytes", "seconds")  # keys that differ between two runs of one recipe
FIELDS = (
    *("step", "tokens", "answer_tokens", "loss", "losses", "weights", "learning_rate", "grad_norm"),
    *("penalty", "gradient_norms", "teacher_signal", "diagnostics"),
    *CLOCK,
)


@dataclass(eq=False)
class StepValues:
    """The values of one optimizer step, kept until the next flush.

    host_values    values on the host: step, started, learning_rate, seconds, peak_memory_bytes
    counts   [2] answer tokens and tokens, over all ranks
    sums     [K] each loss summed over answer tokens, over all ranks
    extras   scalars by name: grad_norm, penalty, the metrics of plugins; and teacher_signal, a text
    rows     for each micro-batch of this rank: the source rows [N] of its answer tokens, and [N] bool: finite losses
    diagnosis_sums  [COLUMNS] over all ranks, at a step with a diagnosis
    weights  each loss's weight at this step
    norms    scalars: each loss's gradient norm, at a step that measures them
    invalid_weights  token weight -> whether it returned a value below 0 or infinite on this rank
    """

    host_values: dict[str, Any]
    counts: Tensor
    sums: Tensor
    extras: dict[str, Any]
    rows: list[tuple[Tensor, Tensor]]
    diagnosis_sums: Tensor | None
    weights: dict[str, float]
    norms: dict[str, Tensor] = field(default_factory=dict)
    invalid_weights: dict[str, Tensor | bool] = field(default_factory=dict)


@dataclass(eq=False)
class Metrics:
    """Collects steps; `flush` converts them to lines and writes them.

    weights_vary  whether the losses' weights vary, so that lines contain them
    write         called with the lines of a flush
    gather        returns the values of all ranks
    row_name      returns the name of a source row for error messages
    places        returns {token weight: where its method is} for error messages
    last_step     the last step that was added, or the one that the run goes on from
    """

    weights_vary: bool
    write: Callable[[list[dict[str, Any]]], None]
    gather: Callable[[list[int]], list[int]] = list
    row_name: Callable[[int], str] = str
    last_step: int = 0
    places: Callable[[], Mapping[str, str]] = dict
    pending: list[StepValues] = field(default_factory=list)

    def add(self, step: StepValues) -> None:
        """Add the values of a step to those that the next flush writes."""
        self.pending.append(step)
        self.last_step = step.host_values["step"]

    def flush(self) -> None:
        """Copy all pending steps to the host at once, check them and write their lines.

        Raises:
            DivergenceError: a loss, gradient or penalty is not finite; the error names the step and the rows.
            RunError: the same, where a token weight is the cause.
        """
        steps, self.pending = self.pending, []
        if not steps:
            return
        tensors = [
            [*step.counts, *step.sums, *_tensors(step.extras), *step.norms.values(), *_diagnosis(step)]
            for step in steps
        ]
        device = steps[0].counts.device
        scalars = [whole(tensor.detach()).to(device, torch.float64).reshape(()) for row in tensors for tensor in row]
        flat = torch.stack(scalars).tolist()
        if device.type != "cpu":
            _share_time(steps)
        lines: list[dict[str, Any]] = []
        for step, row in zip(steps, tensors, strict=True):
            values, flat = flat[: len(row)], flat[len(row) :]
            line = self._line(step, values)
            if fault := _not_finite(line):
                self.write(lines)
                raise self._error(fault, step, line)
            lines.append(line)
        self.write(lines)

    def _line(self, step: StepValues, values: Sequence[float]) -> dict[str, Any]:
        answers, tokens = (int(value) for value in values[:2])
        rest = iter(values[2:])
        losses = {name: next(rest) / max(answers, 1) for name in step.weights}
        named = {name: next(rest) for name, value in step.extras.items() if isinstance(value, Tensor)}
        norms = {name: next(rest) for name in step.norms}
        diagnostics = {} if step.diagnosis_sums is None else {"diagnostics": means(list(rest), answers)}
        seconds = step.host_values["seconds"]
        return {
            "step": step.host_values["step"],
            "tokens": tokens,
            "answer_tokens": answers,
            "loss": sum(weight * losses[name] for name, weight in step.weights.items()),
            "losses": losses,
            **({"weights": step.weights} if self.weights_vary else {}),
            "learning_rate": step.host_values["learning_rate"],
            **step.extras,
            **named,
            **({"gradient_norms": norms} if norms else {}),
            **diagnostics,
            "tokens_per_second": tokens / seconds,
            "peak_memory_bytes": step.host_values["peak_memory_bytes"],
            "seconds": seconds,
        }

    def _error(self, fault: str, step: StepValues, line: dict[str, Any]) -> RunError:
        """Return the error, with the rows of all ranks; every rank has the same fault and calls this."""
        faulty = sorted(set(self.gather([int(row) for rows, finite in step.rows for row in rows[~finite]])))
        role = "rows at fault" if faulty else "rows of this step"
        faulty = faulty or sorted(set(self.gather([int(row) for rows, _ in step.rows for row in rows])))
        listed = ", ".join(map(self.row_name, faulty[:20]))
        if len(faulty) > 20:
            listed += f" and {len(faulty) - 20} more"
        fix = "check these rows in the source, lower train.learning_rate, or resume from the last checkpoint"
        wrong = [name for name, value in line["losses"].items() if not isfinite(value)]
        if wrong:
            by_itself = _finite_student(line)
            fault += "; the student's probabilities are finite, so the loss is at fault" if by_itself else ""
            tests = " and ".join(f"`neoplug check {name}`" for name in wrong)
            tests += " tests whether it is finite for any probabilities"
            fix = f"fix the loss: {tests}" if by_itself else f"{tests}; {fix}"
        names = list(step.invalid_weights)
        invalid = self.gather([number for number, name in enumerate(names) if step.invalid_weights[name]])
        plugins = [names[number] for number in sorted(set(invalid))]
        if plugins:
            fault = f"{' and '.join(f'`{name}`' for name in plugins)} gave a token a weight below 0, or an infinite one"
            fix = f"fix its `token_weight`; `neoplug check {plugins[0]}` finds the smallest example"
        kind = RunError if plugins else DivergenceError
        places = self.places() if plugins else {}
        at = "".join(f"at: {places[name]}\n" for name in plugins if places.get(name))
        return kind(
            f"step {step.host_values['step']}: {fault}\n{at}{role} (numbered from 0 in the source): {listed}\n"
            "why: the update would make every trainable parameter NaN or infinite; nothing of this step was saved\n"
            f"fix: {fix}"
        )


def peak_memory(device: torch.device) -> int:
    """Return the peak memory of the run in bytes, without a synchronisation: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()


def add_plugin_metrics(extras: dict[str, Any], plugin: str, answer: dict[str, Any]) -> None:
    """Add a plugin's metrics to a step's, in place.

    Raises:
        RunError: a name is taken.
    """
    for name, value in answer.items():
        if name in extras or name in FIELDS:
            raise RunError(
                f"`{plugin}` returned a metric `{name}` from `on_step_end`, a name that is taken\n"
                "why: a line of metrics.jsonl has each name once\nfix: choose another name"
            )
        extras[name] = value


def _share_time(steps: Sequence[StepValues]) -> None:
    """Divide the time since the first step equally: on a GPU the host queues the work and waits at the flush only."""
    elapsed = perf_counter() - steps[0].host_values["started"]
    for step in steps:
        step.host_values["seconds"] = elapsed / len(steps)


def _tensors(extras: dict[str, Any]) -> list[Tensor]:
    return [value for value in extras.values() if isinstance(value, Tensor)]


def _diagnosis(step: StepValues) -> list[Tensor]:
    return [] if step.diagnosis_sums is None else list(step.diagnosis_sums)


def _finite_student(line: dict[str, Any]) -> bool:
    """Return whether a line shows that the student's log-probabilities are finite: another loss or a diagnosis is."""
    shown = [*line["losses"].values(), line.get("diagnostics", {}).get("student_cross_entropy", nan)]
    return any(isfinite(value) for value in shown)


def _not_finite(line: dict[str, Any]) -> str:
    """Return the names and values in a line that are not finite; an empty string where there are none."""
    numbers = {f"loss {name}": value for name, value in line["losses"].items()}
    numbers |= {name.replace("grad_norm", "gradient"): line[name] for name in ("grad_norm", "penalty") if name in line}
    return ", ".join(f"{name} is {value}" for name, value in numbers.items() if value - value != 0)
