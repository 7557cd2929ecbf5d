"""What the ledger has of a run that ended, computed from the run's directory: by the worker, and of a replay."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

from neoplug.registry.nested import numbers
from neoplug.runs.directory import RunDir
from neoplug.studies.halves import half_of
from neoplug.studies.ledger import Numbers
from neoplug.studies.tables import VALIDATION

if TYPE_CHECKING:
    import pyarrow

COSTS = (
    *("trainable_parameters", "total_parameters", "steps", "tokens", "answer_tokens", "seconds"),
    "peak_memory_bytes",
)
REFERENCES = {"untrained": "before", "teacher": "teacher"}  # name -> evaluation of a run
POINTS = 120  # of a learning curve


class Measured(NamedTuple):
    """The measurements of a run.

    values     of the trained student, those of the validation half as validation_NAME; may be infinite or NaN
    fields     those of a row of the ledger, where values are finite
    documents  the sums per document; None where the run has none
    """

    values: Numbers
    fields: dict[str, Any]
    documents: "pyarrow.Table | None"


def measure(run: RunDir) -> Measured:
    """Return the measurements of a run that trained to its end."""
    result = run.result.as_dict() if run.result else {}
    values, documents = _halves(run, "after")
    values |= numbers({"probes": result["after"].get("probes") or {}})
    references = {name: _finite(found) for name, file in REFERENCES.items() if (found := _halves(run, file)[0])}
    costs = {key: result[key] for key in COSTS if key in result}
    fields = {"values": _finite(values), "references": references, **costs, "curve": curve(run.metrics.read())}
    return Measured(values, fields, documents)


def curve(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return the tokens that a run has trained on, and its loss, after the steps of `curve_steps`."""
    points = list(zip(accumulate(line["tokens"] for line in lines), (line["loss"] for line in lines), strict=True))
    shown = [points[step - 1] for step in curve_steps(len(lines))]
    return {"tokens": [at for at, _ in shown], "loss": [loss for _, loss in shown]}


def curve_steps(steps: int) -> range:
    """Return the steps of a learning curve, evenly spaced from the first on: at most POINTS."""
    return range(1, steps + 1, -(-steps // POINTS) or 1)


def _halves(run: RunDir, evaluation: str) -> "tuple[Numbers, pyarrow.Table | None]":
    """Return the measures of an evaluation on each half, and its sums per document; nothing where it is absent."""
    import pyarrow
    from pyarrow import compute, parquet

    from neoplug.evaluation.evaluate import metrics_of

    file = run.path / "evaluation" / f"{evaluation}.parquet"
    if not file.exists():
        return {}, None
    table = parquet.read_table(file)
    halves = pyarrow.array([half_of(content_hash) for content_hash in table["document"].to_pylist()], pyarrow.string())
    values: Numbers = {}
    for half, prefix in (("test", ""), ("validation", VALIDATION)):
        part = table.filter(compute.equal(halves, half))
        if part.num_rows:
            values |= {f"{prefix}{name}": value for name, value in metrics_of(part).items()}
    return values, table.add_column(0, "half", halves)


def _finite(values: Mapping[str, float]) -> Numbers:
    """Return the values without infinity and NaN."""
    return {name: value for name, value in values.items() if isfinite(value)}
