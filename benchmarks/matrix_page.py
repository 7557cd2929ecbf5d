"""Writes docs/matrix.md of the data of matrix.py."""

from collections.abc import Iterator
from pathlib import Path

from neoplug.registry.compatibility import Matrix, measured_on, reasons, summary

PAGE = Path(__file__).parents[1] / "docs" / "matrix.md"


def page(matrix: Matrix) -> str:
    """Return the page's text."""
    return "\n".join([HEAD.format(measured=measured_on(matrix)), *table(matrix), WHY, *why(matrix)]) + "\n"


def table(matrix: Matrix) -> Iterator[str]:
    yield f"| adapter | {' | '.join(matrix.loadings)} |"
    yield "|" + " --- |" * (len(matrix.loadings) + 1)
    for name in matrix.rows:
        yield f"| `{name}` | {' | '.join(summary(matrix, name, loading) for loading in matrix.loadings)} |"
    yield ""


def why(matrix: Matrix) -> Iterator[str]:
    for name in matrix.rows:
        yield from (f"- `{name}` {line}" for line in reasons(matrix, name))


HEAD = """# What works together

Each adapter, without options, with each loading of the student, on each family of models: measured by a command on
tiny random models (`neoplug.testing.families`), and shipped as data. This page is its output.

```bash
python benchmarks/matrix.py
neoplug plugins --matrix
```

{measured}.

`neoplug plugins --matrix` shows the same, `neoplug plugins NAME --matrix` one adapter; both say whether the versions
installed are others. `neoplug plan` and `neoplug run` refuse what does not work here before a model is loaded, with the
reason and the nearest that works. A recipe that names other layers (`target_modules`, `exclude_modules`,
`layers_to_transform`) is another case: it was not measured, and is not refused. Nor is a family or an adapter that is
not in the table.

## Held in each cell

`plain` is a student that no plugin under `load` changes. In float32, with two steps of AdamW on random tokens:

- the student starts as its base, or the adapter says that it does not;
- gradients are finite, and each weight that trains gets one that is not 0;
- on a quantised student the same weights train as on an unquantised one;
- the base stays as it was, bit for bit, unless the adapter says that it changes it;
- what is saved gives the same logits when plain peft loads it on the base as it was (`full` saves whole models).

What fails is tried once more on the layers of attention alone.

## Works on
"""
WHY = """## Why not
"""
