"""Checks of answers: each answer of a hook is compared with the rule next to the hook's specification.

A check returns the answer in the form that the core reads, or raises Refusal. Checks of tensors compare shapes, dtypes
and devices, and read no value, so they do not synchronise. torch is imported where a tensor is checked, since the hook
`check` is called without it.

N rows and V columns of `student`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from neoplug.answers.edited_batch import EditedBatch
from neoplug.answers.edited_documents import read_documents
from neoplug.answers.plain_values import Refusal, number, plain
from neoplug.answers.signals import read_signal
from neoplug.errors import Problem

if TYPE_CHECKING:
    from neoplug.answers.rules import Kind, Returns

Arguments = Mapping[str, Any]  # of a call; the core may pass more than the hook has, which only the check reads


@dataclass(frozen=True)
class Before:
    """What a check must know of the arguments before the call.

    versions  argument -> how often torch had written into it
    state     of the argument that the hook changes
    """

    versions: dict[str, int]
    state: Any = None


def before_call(rule: Returns, arguments: Arguments) -> Before:
    """Return what `read_answer` compares the arguments with after the call."""
    given = {name: arguments[name] for name in rule.read_only if arguments.get(name) is not None}
    versions = {name: tensor._version for name, tensor in given.items()}
    state = _STATES[rule.kind](arguments) if rule.kind in _STATES else None
    return Before(versions, state)


def read_answer(rule: Returns, answer: Any, arguments: Arguments, before: Before) -> Any:
    """Return the answer in the form that the core reads.

    Raises:
        Refusal: the answer breaks the rule, or the hook wrote into an argument that it must not change.
    """
    for name, version in before.versions.items():
        if arguments[name]._version != version:
            why = "other plugins and the gradient are computed from the same numbers"
            raise Refusal(
                f"wrote into `{name}`", why, "use operators that return a new tensor, as `exp()` not `exp_()`"
            )
    return _CHECKS[rule.kind](rule, answer, arguments, before.state)


def _expect(right: bool, answer: Any, expected: str) -> None:
    """Raise Refusal unless `right`."""
    if not right:
        raise Refusal.of(answer, expected)


def _nothing(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> None:
    _expect(answer is None, answer, "nothing is read")


def _problems(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> list[Problem]:
    is_list = answer is None or (isinstance(answer, Iterable) and not isinstance(answer, str | Mapping))
    _expect(is_list, answer, "a list of problems is expected")
    problems = list(answer or ())
    for problem in problems:
        _expect(isinstance(problem, Problem), problem, "a neoplug.Problem is expected in the list")
    return problems


def _keyword_arguments(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> dict[str, Any]:
    _expect(answer is None or isinstance(answer, Mapping), answer, "a map is expected")
    for name in answer or ():
        _expect(isinstance(name, str), name, "the name of an argument is expected")
    return dict(answer or {})


def _module(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Any:
    from torch import nn

    _expect(isinstance(answer, nn.Module), answer, "a torch.nn.Module is expected")
    return answer


def _parameter_groups(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> list[dict[str, Any]]:
    """Return groups with lists of parameters; that they cover all parameters is checked by `training.optim`."""
    from torch import Tensor

    _expect(isinstance(answer, list | tuple), answer, "a list of parameter groups is expected")
    groups = []
    for group in answer:
        _expect(isinstance(group, Mapping) and "params" in group, group, "a map with `params` is expected as a group")
        params = group["params"]
        is_iterable = isinstance(params, Iterable) and not isinstance(params, str | Mapping)
        _expect(is_iterable, params, "a list of parameters is expected as `params`")
        params = [params] if isinstance(params, Tensor) else list(params)
        for parameter in params:
            _expect(isinstance(parameter, Tensor), parameter, "a parameter is expected in `params`")
        if "lr" in group:
            _expect(isinstance(number(group["lr"]), int | float), group["lr"], "a number is expected as `lr`")
        groups.append({**group, "params": params})
    return groups


def _optimizer(_rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> Any:
    from torch.optim import Optimizer

    _expect(isinstance(answer, Optimizer), answer, "a torch.optim.Optimizer is expected")
    expected = {id(parameter) for group in arguments["groups"] for parameter in group["params"]}
    updated = [id(parameter) for group in answer.param_groups for parameter in group["params"]]
    if missing := len(expected - set(updated)):
        raise Refusal(f"with an optimizer that lacks {missing} of the {len(expected)} tensors of `groups`")
    if more := len(set(updated) - expected):
        raise Refusal(f"with an optimizer that has {more} tensors which are not in `groups`")
    if len(updated) > len(expected):
        raise Refusal("with an optimizer that has a tensor of `groups` twice")
    return answer


def _tensor(rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> Any:
    (letters,) = rule.shapes
    _validate_shape(answer, letters, arguments)
    _validate_numbers(answer, rule.gradient)
    return answer


def _reason(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> str | None:
    is_reason = answer is None or (isinstance(answer, str) and bool(answer.strip()))
    _expect(is_reason, answer, "a sentence or None is expected")
    return cast("str | None", answer)


def _scalar(rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Any:
    from torch import Tensor

    _expect(isinstance(answer, Tensor) and answer.numel() == 1, answer, "a scalar tensor is expected")
    _validate_numbers(answer, rule.gradient)
    return answer.reshape(())


def _tensors(rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> tuple[Any, ...]:
    count = len(rule.shapes)
    _expect(isinstance(answer, list | tuple) and len(answer) == count, answer, f"{count} tensors are expected")
    for tensor, letters in zip(answer, rule.shapes, strict=True):
        _validate_shape(tensor, letters, arguments)
        _expect(tensor.is_floating_point(), tensor, "floating-point numbers are expected")
    return tuple(answer)


def _validate_shape(tensor: Any, letters: str, arguments: Arguments) -> None:
    """Refuse what is not a tensor of these dimensions on the device of `student`."""
    from torch import Tensor

    student: Tensor = arguments["student"]  # [N, V]
    shape = [{"N": student.shape[0], "V": student.shape[1]}[letter] for letter in letters.split()]
    is_right = isinstance(tensor, Tensor) and list(tensor.shape) == shape
    _expect(is_right, tensor, f"a tensor of shape {shape} is expected")
    _expect(tensor.device == student.device, tensor, f"a tensor on {student.device} is expected")


def _validate_numbers(tensor: Any, gradient: bool) -> None:
    """Refuse complex numbers, and a tensor without a gradient where the core differentiates it."""
    from torch import is_grad_enabled

    _expect(not tensor.is_complex(), tensor, "real numbers are expected")
    if gradient:
        _expect(tensor.is_floating_point(), tensor, "floating-point numbers are expected")
        if is_grad_enabled() and not tensor.requires_grad:
            raise Refusal("with a tensor without a gradient", "it would train nothing")


def _number(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> float:
    read, expected = number(answer), "a finite number of at least 0 is expected"
    if read is None:
        raise Refusal.of(answer, expected)
    if not (isfinite(read) and read >= 0):
        raise Refusal(f"with {read}, where {expected}")
    return float(read)


def _numbers(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> dict[str, Any]:
    """Return metrics as numbers and tensors of one element, which stay on their device.

    Tensors are copied: a plugin may add to its own in place before the metrics are written.
    """
    from torch import Tensor

    _expect(answer is None or isinstance(answer, Mapping), answer, "a map is expected")
    metrics: dict[str, Any] = {}
    for name, value in (answer or {}).items():
        _expect(isinstance(name, str), name, "the name of a number is expected")
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
            metrics[name] = value.detach().clone()
            continue
        metrics[name] = number(value)
        if metrics[name] is None:
            raise Refusal.of(value, "a number is expected", name)
    return metrics


def _json(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Any:
    _expect(answer is not None, answer, "a map is expected")
    return plain(answer)


def _tensors_by_name(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> dict[str, Any]:
    from torch import Tensor

    _expect(isinstance(answer, Mapping) and bool(answer), answer, "a map of names to tensors is expected")
    for name, tensor in answer.items():
        _expect(isinstance(name, str), name, "the name of a tensor is expected")
        if not isinstance(tensor, Tensor):
            raise Refusal.of(tensor, "a tensor is expected", name)
    return dict(answer)


def _files(_rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> None:
    _expect(answer is None, answer, "nothing is read")
    if not any(arguments["path"].iterdir()):
        raise Refusal("wrote no file into `path`")


def _folder(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Path:
    _expect(isinstance(answer, Path | str), answer, "the path of a folder is expected")
    return Path(answer)


def _signal(_rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> Any:
    known = {name: arguments[name] for name in ("tokens", "serves") if name in arguments}
    return read_signal(answer, **known, size=arguments["head"].vocabulary.size)


def _source(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Any:
    is_source = callable(getattr(answer, "rows", None)) and callable(getattr(answer, "identity", None))
    _expect(is_source, answer, "an object with the methods `rows` and `identity` is expected")
    return answer


def read_rows(answer: Any) -> Iterable[Any]:
    """Return what a source's `rows()` answered. Raises Refusal for what yields nothing."""
    _expect(isinstance(answer, Iterable) and not isinstance(answer, str | Mapping), answer, "rows are expected")
    return answer  # type: ignore[no-any-return]


def read_row(answer: Any, number: int) -> dict[str, Any]:
    """Return a row of a source. Raises Refusal for what is no map from column to value; `number` counts from 0."""
    if not isinstance(answer, Mapping) or not all(isinstance(name, str) for name in answer):
        raise Refusal.of(answer, "a map from column to value is expected", str(number), "row")
    return dict(answer)


def read_identity(answer: Any) -> Any:
    """Return a source's identity as JSON holds it. Raises Refusal for what JSON cannot hold, and for nothing."""
    _expect(answer is not None, answer, "what identifies the rows is expected")
    identity = plain(answer)
    try:
        json.dumps(identity, allow_nan=False)
    except ValueError:
        raise Refusal("with NaN or infinity, where what identifies the rows is expected") from None
    return identity


def _transformers_model(_rule: Returns, answer: Any, _arguments: Arguments, _before: Any) -> Any:
    from transformers import PreTrainedModel

    _expect(isinstance(answer, PreTrainedModel), answer, "a transformers.PreTrainedModel is expected")
    return answer


def _documents(_rule: Returns, answer: Any, arguments: Arguments, _before: Any) -> tuple[Any, ...]:
    limits = ("vocabulary", "longest", "teacher_is_stored")
    given = {name: arguments[name] for name in limits if name in arguments}
    return read_documents(answer, arguments["documents"], **given)


def _edited_batch(rule: Returns, answer: Any, arguments: Arguments, before: EditedBatch) -> None:
    _expect(answer is None or answer is arguments["batch"], answer, "nothing is read")
    keeps_text, is_stored = (arguments.get(name, False) for name in ("keeps_text", "teacher_is_stored"))
    before.validate(arguments["batch"], arguments.get("vocabulary"), keeps_text, is_stored)


def _added_keys(rule: Returns, answer: Any, arguments: Arguments, before: dict[str, Any]) -> None:
    """Convert the added values to what JSON holds, in place; refuse changes of other values and of reserved names."""
    _expect(answer is None, answer, "nothing is read")
    result = arguments["result"]
    for name, value in before.items():
        if name not in result or result[name] != value:
            raise Refusal(f"changed `{name}` of the result", "it is what the run measured", "add a key of another name")
    for name in [name for name in result if name not in before]:
        if name in arguments.get("reserved", ()):
            raise Refusal(f"added `{name}` to the result, a name that is taken", fix="choose another name")
        _expect(isinstance(name, str), name, "the name of a key is expected")
        result[name] = plain(result[name], (name,))


_STATES: dict[str, Callable[[Arguments], Any]] = {
    "edited batch": lambda arguments: EditedBatch.of(arguments["batch"]),
    "added keys": lambda arguments: deepcopy(arguments["result"]),
}
_CHECKS: dict[Kind, Callable[[Any, Any, Any, Any], Any]] = {
    "added keys": _added_keys,
    "documents": _documents,
    "edited batch": _edited_batch,
    "files": _files,
    "folder": _folder,
    "json": _json,
    "keyword arguments": _keyword_arguments,
    "module": _module,
    "nothing": _nothing,
    "number": _number,
    "numbers": _numbers,
    "optimizer": _optimizer,
    "parameter groups": _parameter_groups,
    "problems": _problems,
    "reason": _reason,
    "scalar": _scalar,
    "signal": _signal,
    "source": _source,
    "tensor": _tensor,
    "tensors": _tensors,
    "tensors by name": _tensors_by_name,
    "transformers model": _transformers_model,
}
# Why the core needs the answer, and what the author of a plugin writes instead; a Refusal may say it more exactly.
WORDS: dict[Kind, tuple[str, str]] = {
    "added keys": ("result.json holds what the run measured", "add keys to `result` in place; change none"),
    "documents": (
        "both models read these documents, and the objective is computed on their answer tokens",
        "return a list of neoplug.Document; `dataclasses.replace` makes a changed one",
    ),
    "edited batch": (
        "both models read the edited batch, and the objective is computed on its labels",
        "change `batch` in place; shorten `positions`, `labels` and `rows` together",
    ),
    "files": ("without files the trained weights are lost", "write the adapter into the folder `path`"),
    "folder": ("the teacher's stored output is read from it", "return a path"),
    "json": ("the result is stored in JSON files", "return numbers, text, lists and maps; {} where there is no result"),
    "keyword arguments": ("they are passed to `from_pretrained`", "return a map of names to values"),
    "module": ("it is the model that is trained", "return the model with its adapter"),
    "nothing": ("what this hook returns is not used", "change the arguments in place, and return nothing"),
    "number": ("the learning rate of each parameter group is multiplied by it", "return a number of at least 0"),
    "numbers": ("they are stored in files by their names", "return {name: number}, or None"),
    "optimizer": ("it updates every trainable parameter", "return a torch optimizer over all of `groups`"),
    "parameter groups": ("the optimizer is made over them", "return [{'params': [...], 'lr': ...}, ...]"),
    "problems": ("they are shown with the recipe's other mistakes", "return a list of neoplug.Problem"),
    "reason": ("it stands in the result of a run that it ends", "return a sentence to end training, else None"),
    "scalar": (
        "its gradient is added to that of the loss",
        "return a scalar tensor computed from the trainable parameters of `model`",
    ),
    "source": (
        "rows are read several times, and stored under their identity",
        "return neoplug.Source(rows, identity); rows() yields {column: value}, identity() returns text, numbers, lists",
    ),
    "signal": ("losses read it", "return a neoplug.StatesSignal or a neoplug.EntriesSignal"),
    "tensor": (
        "a plugin returns the loss or weight of each token; only the loop sums and divides",
        "return one value for each token, computed from `student`, without a mean or a sum over tokens",
    ),
    "tensors": (
        "a plugin returns the loss of each token and its gradient; only the loop sums and divides",
        "return the loss of each token and its gradient by each logit, without a mean or a sum over tokens",
    ),
    "tensors by name": ("they are stored in files by their names", "return {name: tensor}"),
    "transformers model": ("it is stored with `save_pretrained`", "return the transformers model, without adapter"),
}
