"""Printing of results: metrics before, after and of the teacher, a sample, cost, files, and the next command."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neoplug.cli.screen import duration, echo, heading, size, table
from neoplug.registry.measures import MEASURES
from neoplug.registry.nested import numbers
from neoplug.runs.directory import RunDir

COLUMNS = ("before", "after", "teacher")


def print_result(result: Mapping[str, Any], folder: Path, cannot_merge: str = "") -> None:
    """Print the result of a finished run, and the files in its directory `folder`.

    cannot_merge  why its adapter cannot be merged; empty where it can be
    """
    print_metrics(result, COLUMNS)
    for remark in result.get("remarks") or ():
        echo(f"\n{remark}")
    if sample := result.get("sample"):
        print_sample(sample)
    heading("the run")
    echo(format_cost(result))
    if best := result.get("best"):
        echo(f"  best evaluation: step {best['step']:,}, {best['metric']} {format_number(best['value'])}")
    if stopped := result.get("stopped_early"):
        echo(f"  stopped after step {stopped:,}: {result.get('stop_reason')}")
    heading(f"written to {folder}")
    table([(f"  {name}", size(count)) for name, count in RunDir(folder).contents()])
    heading("next")
    if cannot_merge:
        echo(f"  load adapter/ with peft on its base; it cannot be merged: {cannot_merge}")
    else:
        echo(f"  neoplug export {shlex.quote(str(folder))} {shlex.quote(f'{folder}-model')}")


def print_metrics(result: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Print a table of metrics with those of `columns` that the result has."""
    present = [column for column in columns if result.get(column)]
    if present:
        heading("on held-out text (nats per token; agreement is with the teacher)")
        table(list(metric_rows(result, present)), header=("", *present), numbers=True)


def metric_rows(result: Mapping[str, Any], columns: list[str]) -> Iterator[list[str]]:
    """Yield a row for each metric that at least one column has, then one for each number of a probe."""
    for measure in MEASURES.values():
        cells = [format_number(result[column].get(measure.name)) for column in columns]
        if any(cells) and measure.name != "kd_ce_cosine":  # an input of the remarks
            yield [measure.title, *cells]
    probes = [numbers(result[column].get("probes") or {}) for column in columns]
    for key in dict.fromkeys(key for values in probes for key in values):
        yield [key, *(format_number(values.get(key)) for values in probes)]


def format_number(value: float | None) -> str:
    """Return an integer with thousands separators, any other number with four decimals; "" for None.

    Numbers of 100 or more have one decimal.
    """
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if abs(value) < 100 else f"{value:,.1f}"


def print_sample(sample: Mapping[str, str]) -> None:
    """Print the student's continuation of a prompt before and after training."""
    heading("one prompt, continued")
    for name in ("prompt", "before", "after"):
        if sample.get(name) is not None:
            echo(f"  {name + ':':8} {' '.join(sample[name].split())}")


def format_cost(result: Mapping[str, Any]) -> str:
    """Return a line with those of steps, tokens, time, memory and parameters that the result has."""
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
