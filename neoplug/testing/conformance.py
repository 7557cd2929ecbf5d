"""The conformance kit: what must hold for every loss, for authors of plugins. Needs hypothesis.

    from neoplug.testing import check_loss

    def test_jeffreys():
        check_loss(Jeffreys())

`check_loss` lets hypothesis look for an example that breaks a property and prints the smallest one; each property is
also a function of its own, to be called with an example of your choice. N answer tokens, V vocabulary.

A loss that breaks a property of EXEMPTIONS on purpose declares it in a class attribute or property, with the reason:

    exempt: ClassVar = {"finite_differences": "the weights of both directions are constants (ToDi, section 3)"}
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neoplug.errors import did_you_mean

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

ROUNDING = 1e-4  # what float32 may cost, beside values of 1
# What a right loss may break on purpose: one that is no divergence of the teacher, a reward, detached weights.
EXEMPTIONS = ("zero_where_equal", "not_negative", "finite_differences")


@dataclass(frozen=True, eq=False)
class Example:
    """What a loss is tried on.

    student, teacher  [N, V] logits of any floating dtype, not normalised
    labels            [N] int64
    progress          from 0.0 to 1.0
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    progress: float = 0.0


def examples(rows: int = 3, vocabulary: int = 6, largest: int = 30) -> SearchStrategy[Example]:
    """Return hypothesis' strategy for examples of up to `rows` tokens and `vocabulary` logits of up to +-`largest`."""
    from hypothesis import strategies as st

    eighths = st.integers(-8 * largest, 8 * largest)  # integers shrink much faster than floats

    def of_shape(shape: tuple[int, int]) -> SearchStrategy[Example]:
        count, size = shape
        flat = st.lists(eighths, min_size=count * size, max_size=count * size)
        logits = flat.map(lambda numbers: torch.tensor(numbers).reshape(shape) / 8)
        labels = st.lists(st.integers(0, size - 1), min_size=count, max_size=count).map(torch.tensor)
        progress = st.sampled_from((0.0, 0.5, 1.0))
        return st.builds(Example, student=logits, teacher=logits, labels=labels, progress=progress)

    return st.tuples(st.integers(1, rows), st.integers(2, vocabulary)).flatmap(of_shape)


def call(hook: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    """Call a hook as neoplug does: with those of the arguments that it asks for."""
    return hook(**{name: arguments[name] for name in inspect.signature(hook).parameters})


def value(loss: Any, example: Example) -> Tensor:
    """Return the loss's `token_loss`, [N], without gradient; called as neoplug calls it."""
    with torch.no_grad():
        return call(loss.token_loss, _arguments(example))


def exemptions(loss: Any) -> dict[str, str]:
    """Return {property: reason} of what the loss breaks on purpose. Raises ValueError for what none may break."""
    declared = dict(getattr(loss, "exempt", {}))
    for name in declared.keys() - set(EXEMPTIONS):
        close = did_you_mean(name, EXEMPTIONS)
        raise ValueError(f"{type(loss).__name__}.exempt names `{name}`{close}; it may name {', '.join(EXEMPTIONS)}")
    return declared


def check_loss(loss: Any, *, max_examples: int = 25) -> None:
    """Hold a loss to every property here that it is not exempt from.

    max_examples  how many examples hypothesis tries

    Raises AssertionError at a property that does not hold, hypothesis' smallest example beside it.
    """
    exempt = exemptions(loss)
    _search([check for name, check in PROPERTIES.items() if name not in exempt], loss, max_examples)
    check_extremes(loss)
    check_no_tokens(loss)


def _search(properties: Sequence[Callable[[Any, Example], None]], loss: Any, max_examples: int) -> None:
    """Let hypothesis look for an example that fails; it prints the smallest. Drawing costs most: all share examples."""
    from hypothesis import Phase, given, settings

    phases = (Phase.generate, Phase.shrink)

    @settings(max_examples=max_examples, deadline=None, database=None, phases=phases, report_multiple_bugs=False)
    @given(examples())
    def holds(example: Example) -> None:
        for check in properties:
            check(loss, example)

    holds()


def check_shape(loss: Any, example: Example) -> None:
    """One finite float32 number for each token."""
    found = value(loss, example)
    assert found.shape == example.labels.shape, (
        f"token_loss returned {list(found.shape)}, not [N] = [{len(example.labels)}]"
    )
    assert found.dtype == torch.float32, f"token_loss returned {found.dtype}, not float32"
    assert found.isfinite().all(), f"token_loss is not finite: {found.tolist()}"


def check_not_negative(loss: Any, example: Example) -> None:
    """A loss is 0 or more, but for rounding."""
    found = value(loss, example)
    assert (found >= -ROUNDING).all(), f"the loss is negative: {found.tolist()}"


def check_zero_where_equal(loss: Any, example: Example) -> None:
    """A divergence and its gradient are 0 where the student agrees with the teacher."""
    equal = replace(example, student=example.teacher)
    _assert_close(value(loss, equal), torch.zeros(len(example.labels)), "the loss at student = teacher")
    gradient = _autograd(loss, equal)
    _assert_close(gradient, torch.zeros_like(gradient), "the gradient at student = teacher")


def check_shift(loss: Any, example: Example) -> None:
    """Logits are defined up to a constant: adding one to a row changes nothing."""
    shifts = torch.linspace(-8, 8, len(example.labels))[:, None]
    shifted = replace(example, student=example.student + shifts, teacher=example.teacher - shifts)
    _assert_close(value(loss, shifted), value(loss, example), "the loss of shifted logits")


def check_rows_alone(loss: Any, example: Example) -> None:
    """A token's loss does not depend on the tokens beside it: so any chunk size gives the same."""
    rows = [slice(row, row + 1) for row in range(len(example.labels))]
    parts = [Example(example.student[r], example.teacher[r], example.labels[r], example.progress) for r in rows]
    _assert_close(torch.cat([value(loss, part) for part in parts]), value(loss, example), "the loss one row at a time")


def check_inputs_untouched(loss: Any, example: Example) -> None:
    """The loss writes into none of its inputs, and asks for no gradient of the teacher."""
    for hook in _hooks(loss):
        given = _arguments(example)
        before = {name: tensor.clone() for name, tensor in given.items() if isinstance(tensor, Tensor)}
        if hook.__name__ == "token_loss":
            given["student"].requires_grad_()
            call(hook, given).sum().backward()
        else:
            call(hook, given)
        for name, tensor in before.items():
            assert torch.equal(given[name].detach(), tensor), f"{hook.__name__} writes into `{name}`"
        assert not given["teacher"].requires_grad, f"{hook.__name__} asks for a gradient of the teacher"


def check_closed_form(loss: Any, example: Example) -> None:
    """`token_gradient`, where the loss has one, gives the loss and the gradient by logits that autograd finds."""
    if not hasattr(loss, "token_gradient"):
        return
    with torch.no_grad():
        found, gradient = call(loss.token_gradient, _arguments(example))
    _assert_close(found, value(loss, example), "the loss that token_gradient returns")
    _assert_close(gradient, _autograd(loss, example), "the gradient that token_gradient returns")


def check_finite_differences(loss: Any, example: Example) -> None:
    """The gradient by the student's logits is that of the value: central differences, in float64."""
    wide = replace(example, student=example.student.double(), teacher=example.teacher.double())
    step, differences = 1e-5, torch.zeros_like(wide.student)
    for column in range(wide.student.shape[1]):
        nudge = torch.zeros_like(wide.student)
        nudge[:, column] = step
        up, down = (value(loss, replace(wide, student=wide.student + sign * nudge)) for sign in (1, -1))
        differences[:, column] = (up - down) / (2 * step)
    assert differences.isfinite().all(), "finite differences are not finite"
    _assert_close(_autograd(loss, wide), differences, "autograd's gradient against finite differences")


def check_extremes(loss: Any, vocabulary: int = 260_000) -> None:
    """Loss and gradient stay finite for a large vocabulary, bf16 logits, and probabilities that underflow."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, vocabulary, generator=rng) for _ in range(2))
    student[1], teacher[1, 7], student[1, 9] = 0, 1e4, 1e4  # both certain, of different tokens
    student[2], teacher[2] = student[2] * 1e3, teacher[2] * 1e3
    teacher[3] = 0  # uniform
    labels = torch.tensor([0, 7, vocabulary - 1, 5])
    example = Example(student.bfloat16(), teacher.bfloat16(), labels)
    for what, tensor in (("token_loss", value(loss, example)), ("its gradient", _autograd(loss, example))):
        assert tensor.isfinite().all(), f"{what} is not finite at V = {vocabulary} with extreme logits"
    if hasattr(loss, "token_gradient"):
        found = call(loss.token_gradient, _arguments(example))
        assert all(tensor.isfinite().all() for tensor in found), f"token_gradient is not finite at V = {vocabulary}"


def check_no_tokens(loss: Any) -> None:
    """A chunk without a token costs nothing: an empty answer, no NaN, no crash."""
    nothing = Example(torch.zeros(0, 5), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64))
    assert value(loss, nothing).shape == (0,), "token_loss of no tokens is not empty"
    if hasattr(loss, "token_gradient"):
        found, gradient = call(loss.token_gradient, _arguments(nothing))
        assert (found.shape, gradient.shape) == ((0,), (0, 5)), "token_gradient of no tokens is not empty"


PROPERTIES: dict[str, Callable[[Any, Example], None]] = {
    "shape": check_shape,
    "inputs_untouched": check_inputs_untouched,
    "rows_alone": check_rows_alone,
    "shift": check_shift,
    "closed_form": check_closed_form,
    "not_negative": check_not_negative,
    "zero_where_equal": check_zero_where_equal,
    "finite_differences": check_finite_differences,
}


def _hooks(loss: Any) -> list[Callable[..., Any]]:
    return [getattr(loss, name) for name in ("token_loss", "token_gradient") if hasattr(loss, name)]


def _arguments(example: Example) -> dict[str, Any]:
    """Return the arguments as neoplug makes them: float32 log-probabilities, but float64 stays."""
    wanted = torch.promote_types(torch.float32, example.student.dtype)
    student, teacher = (logits.to(wanted).log_softmax(-1) for logits in (example.student, example.teacher))
    return {"student": student, "teacher": teacher, "labels": example.labels, "progress": example.progress}


def _autograd(loss: Any, example: Example) -> Tensor:
    """Return the gradient of `token_loss` by the student's logits, [N, V]."""
    arguments = _arguments(example)
    wanted = torch.promote_types(torch.float32, example.student.dtype)
    logits = example.student.detach().to(wanted).requires_grad_()
    arguments["student"] = logits.log_softmax(-1)
    (gradient,) = torch.autograd.grad(call(loss.token_loss, arguments).sum(), logits)
    return gradient


def _assert_close(found: Tensor, expected: Tensor, what: str) -> None:
    """Compare to float32's rounding, which grows with the numbers at hand."""
    off = ((found - expected).abs() / (1 + expected.abs())).max().item() if found.numel() else 0.0
    assert off <= ROUNDING, f"{what} is off by {off:.2e}: {found.tolist()} instead of {expected.tolist()}"
