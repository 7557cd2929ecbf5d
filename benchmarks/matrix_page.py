"""Generates docs/reference/matrix.md from the data of matrix.py."""

from collections.abc import Iterator
from pathlib import Path

from neoplug.registry.compatibility import Matrix, measured_on, reasons, summary

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "matrix.md"


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


HEAD = """# Compatibility

Which adapter works with which loading of the student on which model family. Each adapter runs without options on tiny
random models (`neoplug.testing.families`); the results are shipped as data, and this page is generated from them.

```bash
python benchmarks/matrix.py
neoplug plugins --matrix
```

{measured}.

`neoplug plugins --matrix` prints the same table, `neoplug plugins NAME --matrix` one adapter; both report where the
installed versions differ. `neoplug plan` and `neoplug run` refuse a combination that fails here before a model is
loaded, and print the reason and the nearest combination that works. A recipe that selects other layers
(`target_modules`, `exclude_modules`, `layers_to_transform`) was not measured and is not refused, nor is a family or an
adapter outside the table.

## What each cell tests

`plain` is a student that no plugin under `load` changes. In float32, with two steps of AdamW on random tokens:

- the initial student gives the outputs of its base, unless the adapter declares otherwise;
- gradients are finite, and each trainable parameter has a gradient that is not zero;
- on a quantised student the same parameters are trainable as on an unquantised one;
- the base weights do not change, bit for bit, unless the adapter declares that it changes them;
- the saved adapter gives the same logits when plain peft loads it on the original base (`full` saves whole models).

A combination that fails is tried again on the attention layers alone.

## Results
"""
WHY = """## Reasons
"""
