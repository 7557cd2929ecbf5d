"""The conformance kit for token weights. Needs hypothesis.

    from neoplug.testing import check_token_weight

    def test_mine():
        check_token_weight(Mine())

N answer tokens, V vocabulary.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neoplug.testing.conformance import ROUNDING
from neoplug.testing.examples import Example, call, examples


def check_token_weight(weight: Any) -> None:
    """Hold a token weight to all that neoplug asks of one; hypothesis shows the smallest example that breaks it."""
    from hypothesis import HealthCheck, given, settings

    @settings(deadline=None, max_examples=40, database=None, suppress_health_check=list(HealthCheck))
    @given(examples())
    def of_any(example: Example) -> None:
        _check_answer(weight, example)
        _check_rows_alone(weight, example)
        _check_shift(weight, example)

    of_any()
    _check_extremes(weight)


def _check_answer(weight: Any, example: Example) -> None:
    """[N] float32, finite, at least 0, without a gradient; what it was given is as it was."""
    given = _arguments(example)
    before = {name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}
    given["student"].requires_grad_()
    with torch.no_grad():
        found = call(weight.token_weight, given)
    assert isinstance(found, Tensor), f"token_weight returned a {type(found).__name__}"
    assert found.shape == example.labels.shape, f"token_weight returned {list(found.shape)}, not [{len(found)}]"
    assert found.dtype == torch.float32, f"token_weight returned {found.dtype}, not float32"
    assert not found.requires_grad, "token_weight asks for a gradient: it turns autograd on by itself"
    assert (found.isfinite() & (found >= 0)).all(), f"token_weight is not finite and at least 0: {found.tolist()}"
    for name, value in before.items():
        assert torch.equal(given[name].detach(), value), f"token_weight writes into `{name}`"


def _check_rows_alone(weight: Any, example: Example) -> None:
    """A token's weight is its own: neoplug calls with tiles of any size."""
    whole = _weights(weight, _arguments(example))
    for row in range(len(whole)):
        given = _arguments(example)
        alone = {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in given.items()}
        _assert_close(_weights(weight, alone), whole[row : row + 1], "a token's weight, one row at a time,")


def _check_shift(weight: Any, example: Example) -> None:
    """Logits are known up to a shift of each row."""
    shifted = replace(example, student=example.student + 3, teacher=example.teacher - 5)
    given = (_weights(weight, _arguments(example)), _weights(weight, _arguments(shifted)))
    _assert_close(given[1], given[0], "the weight of shifted logits")


def _check_extremes(weight: Any, vocabulary: int = 260_000) -> None:
    """Weights stay finite and at least 0 for certain, uniform and underflowing models, far into an answer."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, vocabulary, generator=rng) for _ in range(2))
    student[1], teacher[1, 7], student[1, 9] = 0, 1e4, 1e4  # both certain, of different tokens
    student[2], teacher[2] = student[2] * 1e3, teacher[2] * 1e3
    teacher[3] = 0  # uniform
    example = Example(student.bfloat16(), teacher.bfloat16(), torch.tensor([0, 9, vocabulary - 1, 5]))
    given = _arguments(example) | {"position": torch.tensor([0, 1, 100_000, 2**31])}
    found = _weights(weight, given)
    assert (found.isfinite() & (found >= 0)).all(), f"token_weight of extreme logits: {found.tolist()}"
    nothing = {name: value[:0] if isinstance(value, Tensor) else value for name, value in given.items()}
    assert _weights(weight, nothing).shape == (0,), "token_weight of no tokens is not empty"


def _weights(weight: Any, arguments: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return call(weight.token_weight, arguments)


def _arguments(example: Example) -> dict[str, Any]:
    """Return the arguments as neoplug makes them; the places are not in the order of the rows."""
    student, teacher = (logits.float().log_softmax(-1) for logits in (example.student, example.teacher))
    position = torch.arange(len(example.labels)).flip(0) * 50
    known = {"student": student, "teacher": teacher, "labels": example.labels, "position": position}
    return known | {"progress": example.progress}


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    off = (found - expected).abs().max().item() if found.numel() else 0.0
    assert off <= ROUNDING, f"{what} is off by {off:.2e}: {found.tolist()} instead of {expected.tolist()}"
