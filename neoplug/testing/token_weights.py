"""Conformance tests of token weights: a property is a function that raises Broken for an example on which it fails.

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

from neoplug.testing.conformance import LARGE
from neoplug.testing.loss_examples import Example, arguments_of, call, extreme, hook
from neoplug.testing.search import Broken, Kit, check_close


def check_token_weight(weight: Any, *, max_examples: int = 40) -> None:
    """Test every property of token weights.

    max_examples  number of examples that hypothesis tries

    Raises AssertionError for a property that does not hold, with the smallest example that hypothesis finds.
    """
    TOKEN_WEIGHT.hold(weight, max_examples)


def _shape(weight: Any, example: Example) -> None:
    """It returns one float32 number for each token, without gradient."""
    given = _arguments(example)
    given["student"].requires_grad_()
    found = _weights(weight, given)
    if not isinstance(found, Tensor):
        raise Broken(f"token_weight returned a {type(found).__name__}, not a tensor")
    if found.shape != example.labels.shape:
        raise Broken(f"token_weight returned {list(found.shape)}, not [{len(example)}]")
    if found.dtype != torch.float32:
        raise Broken(f"token_weight returned {found.dtype}, not float32")
    if found.requires_grad:
        raise Broken("token_weight returns a tensor with gradient: it turns autograd on")


def _inputs_untouched(weight: Any, example: Example) -> None:
    """It does not write into its inputs."""
    given = _arguments(example)
    before = {name: value.clone() for name, value in given.items() if isinstance(value, Tensor)}
    _weights(weight, given)
    for name, value in before.items():
        if not torch.equal(given[name], value):
            raise Broken(f"token_weight writes into `{name}`", given[name], value)


def _not_negative(weight: Any, example: Example) -> None:
    """It is finite and at least 0."""
    found = _weights(weight, _arguments(example))
    if not (found.isfinite() & (found >= 0)).all():
        raise Broken("token_weight is not finite and at least 0", found)


def _chunks(weight: Any, example: Example) -> None:
    """A token's weight does not depend on the other tokens."""
    given = _arguments(example)
    whole = _weights(weight, given)
    alone = [
        {name: value[row : row + 1] if isinstance(value, Tensor) else value for name, value in given.items()}
        for row in range(len(whole))
    ]
    check_close(torch.cat([_weights(weight, one) for one in alone]), whole, "a token's weight, one row at a time,")


def _shift(weight: Any, example: Example) -> None:
    """A constant added to a token's logits changes nothing."""
    shifted = replace(example, student=example.student + 3, teacher=example.teacher - 5)
    given = (_weights(weight, _arguments(shifted)), _weights(weight, _arguments(example)))
    check_close(*given, "the weight of shifted logits")


def _large_vocabulary(weight: Any) -> None:
    """It is finite for a vocabulary of 260,000, extreme logits and far into an answer; of no tokens it is empty."""
    given = _arguments(extreme(LARGE)) | {"position": torch.tensor([0, 1, 64, 100_000, 2**31])}
    found = _weights(weight, given)
    if not (found.isfinite() & (found >= 0)).all():
        raise Broken("token_weight of extreme logits is not finite and at least 0", found)
    nothing = {name: value[:0] if isinstance(value, Tensor) else value for name, value in given.items()}
    if (found := _weights(weight, nothing)).shape != (0,):
        raise Broken(f"token_weight of no tokens returned {list(found.shape)}, not [0]")


TOKEN_WEIGHT = Kit(
    "token weight",
    quick={
        "inputs_untouched": _inputs_untouched,
        "shape": _shape,
        "not_negative": _not_negative,
        "chunks": _chunks,
        "shift": _shift,
    },
    once={"large_vocabulary": _large_vocabulary},
)


@torch.no_grad()
def _weights(weight: Any, arguments: dict[str, Any]) -> Tensor:
    """Return the plugin's `token_weight` for these arguments."""
    function = hook(weight, "token_weight")
    assert function is not None
    found: Tensor = call(function, arguments)
    return found


def _arguments(example: Example) -> dict[str, Any]:
    """Return the arguments as neoplug passes them; positions are not in the order of the rows."""
    given = arguments_of(example) | {"position": torch.arange(len(example)).flip(0) * 50}
    return given | {"teacher_entropy": torch.special.entr(given["teacher"].exp()).sum(-1)}
