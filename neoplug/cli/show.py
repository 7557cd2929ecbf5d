"""A result as people read it: before, after and teacher side by side, one continuation, what lies where, what next."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neoplug.cli.screen import duration, heading, printable, say, size, table
from neoplug.registry.measures import MEASURES
from neoplug.registry.nested import numbers
from neoplug.runs.directory import RunDir

COLUMNS = ("before", "after", "teacher")


def result(result: Mapping[str, Any], folder: Path, cannot_merge: str = "") -> None:
    """Show the result of a run that ended, and what it left in `folder`.

    cannot_merge  why its adapter cannot be merged; empty: it can
    """
    measured(result, COLUMNS)
    for remark in result.get("remarks") or ():
        say(f"\n{remark}")
    if sample := result.get("sample"):
        continuation(sample)
    heading("the run")
    say(cost(result))
    if best := result.get("best"):
        say(f"  the best of its evaluations: step {best['step']:,}, {best['metric']} {number(best['value'])}")
    if stopped := result.get("stopped_early"):
        say(f"  stopped after step {stopped:,}: the evaluations since the best brought nothing")
    heading(f"written to {folder}")
    table([(f"  {name}", size(count)) for name, count in RunDir(folder).contents()])
    heading("next")
    if cannot_merge:
        say(f"  peft loads adapter/ beside its base; no export can merge it: {cannot_merge}")
    else:
        say(f"  neoplug export {shlex.quote(str(folder))} {shlex.quote(f'{folder}-model')}")


def measured(result: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Show what was measured, those of the columns side by side that there are."""
    known = [column for column in columns if result.get(column)]
    if known:
        heading("on held-out text (nats per token; agreement is with the teacher)")
        table(list(measures(result, known)), header=("", *known), numbers=True)


def measures(result: Mapping[str, Any], measured: list[str]) -> Iterator[list[str]]:
    """Yield a row for each measure that anybody has, then one for each number of a probe."""
    for measure in MEASURES.values():
        cells = [number(result[column].get(measure.name)) for column in measured]
        if any(cells) and measure.name != "kd_ce_cosine":  # of use to `remarks`, not to a reader of the table
            yield [measure.title, *cells]
    probes = [numbers(result[column].get("probes") or {}) for column in measured]
    for key in dict.fromkeys(key for column in probes for key in column):
        yield [key, *(number(column.get(key)) for column in probes)]


def number(value: float | None) -> str:
    """Return four significant digits or more; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def continuation(sample: Mapping[str, str]) -> None:
    """Show how the student goes on after one prompt, before and after training."""
    heading("one prompt, continued")
    for name in ("prompt", "before", "after"):
        if sample.get(name) is not None:
            say(f"  {name + ':':8} {printable(' '.join(sample[name].split()))}")


def cost(result: Mapping[str, Any]) -> str:
    """Return steps, tokens, time, memory and parameters in one line, as far as they are known."""
    parts = []
    if (steps := result.get("steps")) is not None:
        parts.append(f"{steps:,} steps")
    if (tokens := result.get("tokens")) is not None:
        parts.append(f"{tokens:,} tokens ({result.get('answer_tokens', 0):,} scored)")
    if (seconds := result.get("seconds")) is not None:
        parts.append(duration(seconds))
    if peak := result.get("peak_memory_bytes"):
        parts.append(f"peak memory {size(peak)}")
    if (trainable := result.get("trainable_parameters")) is not None:
        parts.append(f"{trainable:,} of {result['total_parameters']:,} parameters trained")
    return "  " + ", ".join(parts)
