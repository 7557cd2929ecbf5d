"""One line of metrics for each optimizer step. Values stay on the device until a flush: nothing else synchronises.

K losses. Nothing that is not finite passes a flush, so no checkpoint that follows one can hold it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from neoplug.errors import RunError
from neoplug.training.diagnostics import means

FIELDS = (
    *("step", "tokens", "answer_tokens", "loss", "losses", "weights", "learning_rate", "grad_norm"),
    *("penalty", "gradient_norms", "diagnostics", "tokens_per_second", "peak_memory_bytes", "seconds"),
)


@dataclass(eq=False)
class Step:
    """What a step leaves behind until the next flush.

    known    what the host knows: step, started, learning_rate, seconds, peak_memory_bytes
    counts   [2] answer tokens and tokens, over all ranks
    sums     [K] each loss summed over answer tokens, over all ranks
    extras   scalars by name: grad_norm, penalty, what plugins add
    rows     the source rows of this rank's answer tokens, and which of these tokens have a finite loss
    seen     [SEEN] sums of a diagnosis over all ranks, at a step that has one
    weights  each loss's weight at this step
    norms    scalars: each loss's own gradient norm, at a step that measures it
    unsound  token weight -> whether this rank saw one of it that is below 0 or infinite
    """

    known: dict[str, Any]
    counts: Tensor
    sums: Tensor
    extras: dict[str, Any]
    rows: list[tuple[Tensor, Tensor]]
    seen: Tensor | None
    weights: dict[str, float]
    norms: dict[str, Tensor] = field(default_factory=dict)
    unsound: dict[str, Tensor | bool] = field(default_factory=dict)


@dataclass(eq=False)
class Metrics:
    """Collects steps; `flush` turns them to lines and hands them on.

    Raises (on flush):
        RunError: a loss, gradient or penalty is not finite; the error names the step and the rows at fault.
    """

    weights_vary: bool
    write: Callable[[list[dict[str, Any]]], None]
    gather: Callable[[list[int]], list[int]] = list  # from all ranks
    name: Callable[[int], str] = str  # of a row, for people
    pending: list[Step] = field(default_factory=list)

    def add(self, step: Step) -> None:
        """Keep a step for the next flush."""
        self.pending.append(step)

    def flush(self) -> None:
        """Bring all pending steps to the host at once, check them and write their lines."""
        steps, self.pending = self.pending, []
        if not steps:
            return
        tensors = [
            [*step.counts, *step.sums, *_tensors(step.extras), *step.norms.values(), *_seen(step)] for step in steps
        ]
        device = steps[0].counts.device
        scalars = [tensor.detach().to(device, torch.float64).reshape(()) for row in tensors for tensor in row]
        flat = torch.stack(scalars).tolist()
        if device.type != "cpu":
            _share_time(steps)
        lines: list[dict[str, Any]] = []
        for step, row in zip(steps, tensors, strict=True):
            values, flat = flat[: len(row)], flat[len(row) :]
            line = self._line(step, values)
            if fault := _not_finite(line):
                self.write(lines)
                raise RunError(self._explain(fault, step))
            lines.append(line)
        self.write(lines)

    def _line(self, step: Step, values: Sequence[float]) -> dict[str, Any]:
        answers, tokens = (int(value) for value in values[:2])
        rest = iter(values[2:])
        losses = {name: next(rest) / max(answers, 1) for name in step.weights}
        named = {name: next(rest) for name, value in step.extras.items() if isinstance(value, Tensor)}
        norms = {name: next(rest) for name in step.norms}
        diagnostics = {} if step.seen is None else {"diagnostics": means(list(rest), answers)}
        seconds = step.known["seconds"]
        return {
            "step": step.known["step"],
            "tokens": tokens,
            "answer_tokens": answers,
            "loss": sum(weight * losses[name] for name, weight in step.weights.items()),
            "losses": losses,
            **({"weights": step.weights} if self.weights_vary else {}),
            "learning_rate": step.known["learning_rate"],
            **step.extras,
            **named,
            **({"gradient_norms": norms} if norms else {}),
            **diagnostics,
            "tokens_per_second": tokens / seconds,
            "peak_memory_bytes": step.known["peak_memory_bytes"],
            "seconds": seconds,
        }

    def _explain(self, fault: str, step: Step) -> str:
        """Say what happened and which rows of all ranks it came from. Ranks see the same fault, so all come here."""
        guilty = sorted(set(self.gather([int(row) for rows, finite in step.rows for row in rows[~finite]])))
        whose = "rows at fault" if guilty else "rows of this step"
        guilty = guilty or sorted(set(self.gather([int(row) for rows, _ in step.rows for row in rows])))
        shown = ", ".join(map(self.name, guilty[:20])) + (f" and {len(guilty) - 20} more" if len(guilty) > 20 else "")
        fix = "look at these rows in the source, lower train.learning_rate, or go on from the last checkpoint"
        names = list(step.unsound)
        blamed = [names[n] for n in sorted(set(self.gather([n for n, name in enumerate(names) if step.unsound[name]])))]
        if blamed:
            fault = f"a weight below 0, or infinite, was given to a token by {' and '.join(f'`{n}`' for n in blamed)}"
            fix = f"mend the token weight; `neoplug check {blamed[0]}` looks for the smallest example"
        return (
            f"step {step.known['step']}: {fault}\n{whose} (numbered from 0 in the source): {shown}\n"
            f"why: from here on every weight would be lost; nothing of this step was saved\nfix: {fix}"
        )


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: allocated on a GPU, resident on a CPU. Waits for nothing."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not everywhere

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def merge(extras: dict[str, Any], plugin: str, answer: dict[str, Any]) -> None:
    """Add a plugin's metrics to a step's, in place.

    Raises:
        RunError: a name is taken, or a value is no single number.
    """
    for name, value in answer.items():
        if name in extras or name in FIELDS:
            raise RunError(
                f"`{plugin}` answered `on_step_end` with a metric called `{name}`, which is taken\n"
                "why: one line of metrics.jsonl holds each name once\nfix: call it by a name of its own"
            )
        if isinstance(value, Tensor) and value.numel() != 1:
            raise RunError(
                f"the metric `{name}` of `{plugin}` has shape {list(value.shape)}\n"
                "why: a metric is one number a step\nfix: return a number or a tensor of one element"
            )
        extras[name] = value


def _share_time(steps: Sequence[Step]) -> None:
    """Share the time since the first step among all: on a GPU the host only queues work, and waits at the flush."""
    elapsed = perf_counter() - steps[0].known["started"]
    for step in steps:
        step.known["seconds"] = elapsed / len(steps)


def _tensors(extras: dict[str, Any]) -> list[Tensor]:
    return [value for value in extras.values() if isinstance(value, Tensor)]


def _seen(step: Step) -> list[Tensor]:
    return [] if step.seen is None else list(step.seen)


def _not_finite(line: dict[str, Any]) -> str:
    """Name what is not finite in a line, or return an empty string."""
    numbers = {f"loss {name}": value for name, value in line["losses"].items()}
    numbers |= {name.replace("grad_norm", "gradient"): line[name] for name in ("grad_norm", "penalty") if name in line}
    return ", ".join(f"{name} is {value}" for name, value in numbers.items() if value - value != 0)
