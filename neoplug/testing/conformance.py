"""Conformance tests of losses: each property is a function that raises Broken for an example on which it does not hold.

    from neoplug.testing import check_loss

    def test_jeffreys():
        check_loss(Jeffreys())

N answer tokens, V vocabulary. A loss that breaks a property of LOSS.exempt on purpose declares this, with
the reason, in a class attribute or property:

    exempt: ClassVar = {"finite_differences": "the weights of both directions are constants (ToDi, section 3)"}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from neoplug.testing.loss_examples import Example, arguments_of, call, closed_form, extreme, gradient, hook, value
from neoplug.testing.optimizer_step import optimizer_step
from neoplug.testing.search import ROUNDING, Broken, Kit, check_close
from neoplug.testing.sparse import check_buckets, check_linear, check_sparse_closed_form, unread
from neoplug.training.formula import formula_of

COARSE = 1e-2  # tolerance of finite differences of a loss that computes in float32 even for float64 inputs
EXTREME = 320  # factor that makes an example's logits extreme
LARGE = 260_000  # tokens of the largest vocabularies


def check_loss(loss: Any, *, max_examples: int = 25) -> None:
    """Test every property of losses, except those that the loss is exempt from. Each call tests the same examples.

    max_examples  number of examples that hypothesis tries

    Raises AssertionError for a property that does not hold, with the smallest example that hypothesis finds.
    """
    LOSS.hold(loss, max_examples)


def check_shape(loss: Any, example: Example) -> None:
    """It returns one float32 number for each token, also under autograd."""
    of_loss, of_gradient = list(example.labels.shape), list(example.student.shape)
    _validate_tensor(value(loss, example), "token_loss", of_loss)
    gradient(loss, example)
    if (function := hook(loss, "token_gradient")) is not None:
        answer = torch.no_grad()(call)(function, arguments_of(example))
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Broken(f"token_gradient returned a {type(answer).__name__}, not two tensors")
        for tensor, shape in zip(answer, (of_loss, of_gradient), strict=True):
            _validate_tensor(tensor, "token_gradient", shape)


def _validate_tensor(value: Any, name: str, shape: list[int]) -> None:
    """Raise Broken for anything but a float32 tensor of this shape."""
    if not isinstance(value, Tensor):
        raise Broken(f"{name} returned a {type(value).__name__}, not a tensor")
    if list(value.shape) != shape:
        raise Broken(f"{name} returned {list(value.shape)}, not {shape}")
    if value.dtype != torch.float32:
        raise Broken(f"{name} returned {value.dtype}, not float32")


def check_inputs_untouched(loss: Any, example: Example) -> None:
    """It does not write into its inputs."""
    for function, arguments in _calls(loss, example):
        before = {name: tensor.clone() for name, tensor in arguments.items() if isinstance(tensor, Tensor)}
        torch.no_grad()(call)(function, arguments)
        for name, tensor in before.items():
            if not torch.equal(arguments[name], tensor):
                raise Broken(f"{function.__name__} writes into `{name}`", arguments[name], tensor)


def check_teacher_gradient(loss: Any, example: Example) -> None:
    """The teacher gets no gradient."""
    for function, arguments in _calls(loss, example):
        call(function, arguments)
        if arguments["teacher"].requires_grad:
            raise Broken(f"{function.__name__} turns on a gradient of the teacher")
    for teacher_gradient in optimizer_step(loss, example).teacher:
        raise Broken("a step gives the teacher a gradient", teacher_gradient)


def check_chunks(loss: Any, example: Example) -> None:
    """A token's loss and gradient do not depend on the other tokens."""
    alone = [example.rows(slice(row, row + 1)) for row in range(len(example))]
    for what, function in (("loss", value), ("gradient", gradient)):
        separate = torch.cat([function(loss, token) for token in alone])
        check_close(separate, function(loss, example), f"the {what} of each token alone")


def check_splits(loss: Any, example: Example) -> None:
    """Loss and gradient of a step do not depend on its split into micro-batches or ranks."""
    whole, split = optimizer_step(loss, example), optimizer_step(loss, example, (slice(0), slice(0, 1), slice(1, None)))
    what = f"of a step in micro-batches of 0, 1 and {len(example) - 1} answer tokens"
    check_close(split.loss, whole.loss, f"the loss {what}")
    check_close(split.states, whole.states, f"the hidden states' gradient {what}")
    check_close(split.head, whole.head, f"the head's gradient {what}")


def check_masked(loss: Any, example: Example) -> None:
    """The gradient of a position that predicts no answer token is exactly 0."""
    masked = optimizer_step(loss, example).states.reshape(len(example), 3, -1)[:, 1:]  # the first of three predicts
    if masked.any():
        raise Broken("a masked position gets a gradient", masked, torch.zeros_like(masked))


def check_no_tokens(loss: Any, example: Example) -> None:
    """Without answer tokens, loss and gradient are 0."""
    nothing = example.rows(slice(0))
    found, none = value(loss, nothing), torch.zeros(0, example.student.shape[1])
    if found.shape != (0,):
        raise Broken(f"token_loss of no tokens returned {list(found.shape)}, not [0]")
    if (answer := closed_form(loss, nothing)) is not None and (answer[0].shape, answer[1].shape) != ((0,), none.shape):
        raise Broken("token_gradient of no tokens is not empty")
    empty = optimizer_step(loss, example, [slice(0)])
    numbers = {"loss": empty.loss, "hidden states' gradient": empty.states, "head's gradient": empty.head}
    for what, number in numbers.items():
        if not torch.equal(number, torch.zeros_like(number)):
            raise Broken(f"the {what} of a batch without answer tokens", number, torch.zeros_like(number))


def check_shift(loss: Any, example: Example) -> None:
    """A constant added to a token's logits changes nothing, and gradients sum to 0."""
    shifts = torch.linspace(-8, 8, len(example))[:, None]
    shifted = replace(example, student=example.student + shifts, teacher=example.teacher - shifts)
    check_close(value(loss, shifted), value(loss, example), "the loss of shifted logits")
    if (answer := closed_form(loss, example)) is not None:
        sums = answer[1].sum(-1)
        check_close(sums, torch.zeros_like(sums), "the sum over the vocabulary of token_gradient's gradient")


def check_closed_form(loss: Any, example: Example) -> None:
    """`token_gradient` returns the loss, and the gradient that autograd computes."""
    if (answer := closed_form(loss, example)) is None:
        return
    check_close(answer[0], value(loss, example), "the loss that token_gradient returns")
    check_close(answer[1], gradient(loss, example), "the gradient that token_gradient returns")


def check_formula(loss: Any, example: Example) -> None:
    """Its `formula` is the loss, and has its gradient."""
    if (formula := formula_of(loss)) is None:
        return
    arguments = arguments_of(example)
    logits = example.student.detach().to(arguments["student"].dtype).requires_grad_()
    found = formula.value(logits.log_softmax(-1), arguments["teacher"], example.labels)
    (by_logits,) = torch.autograd.grad(found.sum(), logits)
    check_close(found.detach(), value(loss, example), "the loss that `formula` states")
    check_close(by_logits, gradient(loss, example), "the gradient of the loss that `formula` states")


def check_not_negative(loss: Any, example: Example) -> None:
    """The loss is at least 0."""
    found = value(loss, example)
    if (found < -ROUNDING).any():
        raise Broken("the loss is negative", found)


def check_zero_where_equal(loss: Any, example: Example) -> None:
    """Loss and gradient are 0 where the student equals the teacher."""
    equal = replace(example, student=example.teacher)
    for what, found in (("loss", value(loss, equal)), ("gradient", gradient(loss, equal))):
        check_close(found, torch.zeros_like(found), f"the {what} at student = teacher", equal)


def check_finite_differences(loss: Any, example: Example) -> None:
    """The gradient equals finite differences of the loss in float64."""
    wide = example.of(torch.float64)
    rounds = value(loss, wide).dtype != torch.float64
    width, tolerance = (2.0**-5, COARSE) if rounds else (1e-5, ROUNDING)
    size = wide.student.shape[1]
    student, teacher, labels = (part.repeat_interleave(size, 0) for part in (wide.student, wide.teacher, wide.labels))
    nudges = width * torch.eye(size, dtype=torch.float64).repeat(len(example), 1)  # one logit of one token in each row
    up, down = (value(loss, Example(student + side, teacher, labels, example.progress)) for side in (nudges, -nudges))
    differences = ((up - down) / (2 * width)).reshape(-1, size)
    check_close(
        gradient(loss, wide), differences, "autograd's gradient, against finite differences,", tolerance=tolerance
    )


def check_finite(loss: Any, example: Example) -> None:
    """Loss and gradient are finite for bf16 logits whose probabilities underflow."""
    extreme = replace(example, student=EXTREME * example.student, teacher=EXTREME * example.teacher).of(torch.bfloat16)
    for what, found in _losses_and_gradients(loss, extreme):
        if not found.isfinite().all():
            raise Broken(f"{what} is not finite", found, example=extreme)


def check_large_vocabulary(loss: Any) -> None:
    """Loss and gradient are finite for a vocabulary of 260,000 and extreme logits."""
    for what, found in _losses_and_gradients(loss, extreme(LARGE)):
        if not found.isfinite().all():
            raise Broken(f"{what} is not finite at V = {LARGE:,} with extreme logits")


def _absent(loss: Any) -> dict[str, str]:
    """Return the properties that do not apply to a loss, with the reason."""
    no_closed_form = {"closed_form": "there is no token_gradient"} if hook(loss, "token_gradient") is None else {}
    no_formula = {"formula": "there is none"} if formula_of(loss) is None else {}
    return no_closed_form | no_formula | unread(loss)


LOSS = Kit(
    "loss",
    quick={  # call only the plugin's hooks
        "inputs_untouched": check_inputs_untouched,
        "shape": check_shape,
        "chunks": check_chunks,
        "shift": check_shift,
        "closed_form": check_closed_form,
        "formula": check_formula,
        "not_negative": check_not_negative,
        "zero_where_equal": check_zero_where_equal,
        "finite_differences": check_finite_differences,
        "finite": check_finite,
        "buckets": check_buckets,
        "linear": check_linear,
        "sparse_closed_form": check_sparse_closed_form,
    },
    slow={  # compute an optimizer step
        "splits": check_splits,
        "masked": check_masked,
        "no_tokens": check_no_tokens,
        "teacher_gradient": check_teacher_gradient,
    },
    once={"large_vocabulary": check_large_vocabulary},
    # For losses that are not divergences from the teacher, for rewards, and for detached weights.
    exempt=("zero_where_equal", "not_negative", "finite_differences"),
    absent=_absent,
    needs={"finite_differences": ("chunks", "it needs tokens that do not depend on each other")},
)


def _calls(loss: Any, example: Example) -> Iterator[tuple[Callable[..., Any], dict[str, Any]]]:
    """Yield (hook, arguments) of `token_loss`, then of `token_gradient` where the loss has it."""
    for name in ("token_loss", "token_gradient"):
        if (function := hook(loss, name)) is not None:
            yield function, arguments_of(example)


def _losses_and_gradients(loss: Any, example: Example) -> Iterator[tuple[str, Tensor]]:
    """Yield (description, tensor) of the loss and its gradient by autograd, then of those by token_gradient."""
    yield "the loss", value(loss, example)
    yield "its gradient", gradient(loss, example)
    for what, found in zip(("the loss", "the gradient"), closed_form(loss, example) or (), strict=False):
        yield f"{what} that token_gradient returns", found
