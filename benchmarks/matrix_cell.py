"""One cell of the matrix: an adapter on a model of one family, loaded in one way. See matrix.py.

With random tokens in float32: the initial student gives the logits of its base (or declares that it does not); two
training steps give finite gradients, and each trainable parameter one that is not 0; the base does not change; and the
saved adapter, loaded by plain peft or its own hook on the original base, gives the same logits.
"""

import copy
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from neoplug import AdapterTraits
from neoplug.data.batch import Batch, Document, collate
from neoplug.errors import RecipeError, UsageError
from neoplug.models.quiet import quiet_peft
from neoplug.registry.compatibility import REFUSED
from neoplug.testing import call

TOTAL = 6  # total optimizer steps that an adapter receives
STEPS, RATE = 2, 1e-2
# Differences of logits, relative to the largest logit.
START_TOLERANCE = 1e-3  # largest one of the initial student from its base
LOAD_TOLERANCE = 2e-3  # largest one of the loaded student from the saved one
MIN_EFFECT = 1e-5  # smallest one that training must make
MAX_LOSS = 0.2  # of the difference made by training, which saving may lose
NUMBERS = re.compile(r" ?\([^()]*\d[^()]*\)")  # sizes of the tiny model in an error message


@dataclass(frozen=True)
class Text:
    """Random tokens: input_ids [B, L], and batches of two documents each."""

    input_ids: torch.Tensor
    batches: list[Batch]


@dataclass(frozen=True)
class Base:
    """A loaded model, which is never changed, and its logits [B, L, V]."""

    model: Any
    logits: torch.Tensor

    @classmethod
    def of(cls, model: Any, text: Text) -> "Base":
        """Return a model with its logits on the text."""
        return cls(model, logits_of(model, text))


class Failed(Exception):
    """Raised where a cell does not work, with the stage and the reason."""

    def __init__(self, at: str, why: str) -> None:
        super().__init__(at, why)
        self.at, self.why = at, why


def text(tokens: int) -> Text:
    ids = torch.randint(3, tokens, (6, 16), generator=torch.Generator().manual_seed(0))
    scored = torch.ones(16, dtype=torch.bool).numpy()
    documents = [Document(row.numpy(), scored, number) for number, row in enumerate(ids)]
    return Text(ids[:4], [collate(documents[at : at + 2]) for at in (0, 2, 4)])


def try_cell(adapter: Any, base: Base, text: Text) -> dict[str, int]:
    """Return {trainable parameter: number of elements}. Raises Failed where the cell does not work."""
    model = copy.deepcopy(base.model)
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    with stage("attach"):
        student = attach(adapter, model, text)
        start = logits_of(student, text)
    fully_trained = all(parameter.requires_grad for parameter in student.parameters())
    check_initial_logits(adapter, base, start)
    with stage("train"):
        train(adapter, student, text)
    if not fully_trained and not AdapterTraits.of(adapter).changes_base:
        check_base_unchanged(before)
    wanted = logits_of(student, text)
    check_training_had_effect(wanted, start)
    if not fully_trained:
        with stage("save"):
            loaded = logits_of(saved_and_loaded(adapter, student, base), text)
        check_loaded_logits(wanted, loaded, off(wanted, start))
    return {name: parameter.numel() for name, parameter in trained(student).items()}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Raise Failed with this stage for any exception; a UsageError of an adapter is a refusal."""
    try:
        with quiet_peft():
            yield
    except RecipeError as error:
        problem = error.problems[0]
        sized = problem.path[2:] not in ((), ("target_modules",))  # an option that does not fit this model's sizes
        at = REFUSED if sized else name
        raise Failed(at, shortened(f"{problem.what}: {problem.why}" if problem.why else problem.what)) from error
    except UsageError as error:
        raise Failed(REFUSED, str(error).partition("\n")[0]) from error
    except Failed:
        raise
    except Exception as error:
        raise Failed(name, shortened(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")) from error


def shortened(message: str) -> str:
    """Return a message's first sentence, without sizes of the tiny model."""
    return NUMBERS.sub("", message).partition(". ")[0].rstrip(".")


def attach(adapter: Any, model: Any, text: Text) -> Any:
    rng = torch.Generator().manual_seed(0)
    given = {"model": model, "batches": iter(text.batches), "total_steps": TOTAL, "rng": rng}
    student = call(adapter.add_adapter, given)
    if not trained(student):
        raise Failed("attach", "it adapts no layer, so nothing would train")
    for parameter in trained(student).values():
        parameter.data = parameter.data.float()  # as a run does
    return student


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def logits_of(model: Any, text: Text) -> torch.Tensor:
    """Return the logits at the tokens of the text, before which some adapters put others."""
    found: torch.Tensor = model.eval()(input_ids=text.input_ids).logits
    return found[:, -text.input_ids.shape[1] :].float()


def train(adapter: Any, student: Any, text: Text) -> None:
    parameters = trained(student)
    optimizer = torch.optim.AdamW(parameters.values(), lr=RATE)
    reached: set[str] = set()
    for step in range(STEPS):
        torch.manual_seed(step)
        loss_of(adapter, student.train(), text, step).backward()
        gradients = {name: weight.grad for name, weight in parameters.items() if weight.grad is not None}
        if wrong := [name for name, gradient in gradients.items() if not gradient.isfinite().all()]:
            raise Failed("train", f"gradients are not finite, as that of {plain(wrong[0])}")
        reached |= {name for name, gradient in gradients.items() if gradient.any()}
        optimizer.step()
        if hasattr(adapter, "on_step_end"):
            call(adapter.on_step_end, {"step": step + 1, "progress": 0.0, "model": student, "metrics": {}, "name": ""})
        optimizer.zero_grad()
    if stuck := [name for name in parameters if name not in reached]:
        raise Failed("train", f"weights that should train get no gradient, as {plain(stuck[0])}")


def plain(name: str) -> str:
    """Return a parameter's name without the parts that peft adds."""
    return name.removeprefix("base_model.model.").replace(".default", "")


def loss_of(adapter: Any, student: Any, text: Text, step: int) -> torch.Tensor:
    """Return the cross-entropy in nats per token plus the adapter's penalty."""
    length = text.input_ids.shape[1]
    predicted = student(input_ids=text.input_ids, use_cache=False).logits[:, -length:-1]
    loss = cross_entropy(predicted.flatten(0, 1).float(), text.input_ids[:, 1:].flatten())
    if hasattr(adapter, "penalty"):
        loss = loss + call(adapter.penalty, {"model": student, "progress": step / (TOTAL - 1)})
    return loss


def saved_and_loaded(adapter: Any, student: Any, base: Base) -> Any:
    from peft import PeftModel

    from neoplug.runs.artifacts import _save_peft

    with tempfile.TemporaryDirectory() as folder:
        getattr(adapter, "save_adapter", _save_peft)(student, Path(folder))
        model = copy.deepcopy(base.model)
        if hasattr(adapter, "base_weights"):  # a run ships the base of the adapter
            model.load_state_dict(adapter.base_weights(student))
        if hasattr(adapter, "load_adapter"):
            return adapter.load_adapter(model, Path(folder))
        return PeftModel.from_pretrained(model, folder)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference relative to the largest logit; infinite if one is not finite."""
    share = float((found - wanted).abs().max() / wanted.abs().max())
    return share if share == share else float("inf")


def check_initial_logits(adapter: Any, base: Base, start: torch.Tensor) -> None:
    share = off(start, base.logits)
    if share > START_TOLERANCE and not AdapterTraits.of(adapter).starts_elsewhere:
        raise Failed("attach", f"the student does not start as its base: logits are off by {share:.1g} of the largest")


def check_base_unchanged(before: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
    moved = sum(not torch.equal(now, then) for now, then in before)
    if moved:
        raise Failed("train", f"{moved} weights of the base changed in training")


def check_training_had_effect(wanted: torch.Tensor, start: torch.Tensor) -> None:
    if off(wanted, start) < MIN_EFFECT:
        raise Failed("train", "two steps of training change nothing")


def check_loaded_logits(wanted: torch.Tensor, loaded: torch.Tensor, moved: float) -> None:
    share = off(loaded, wanted)
    if share > min(LOAD_TOLERANCE, max(MAX_LOSS * moved, MIN_EFFECT)):
        raise Failed("save", f"the student that peft loads differs: its logits are off by {share:.1g} of the largest")


def check_same_trainable(found: Iterable[str], expected: Iterable[str]) -> None:
    """Raise Failed where a quantised student has other trainable parameters than an unquantised one."""
    if others := sorted(set(found) ^ set(expected)):
        raise Failed("train", f"other weights train than on an unquantised student, as {plain(others[0])}")


def attention_layers(model: nn.Module) -> list[str]:
    """Return name endings that match the linear layers of attention and no other layer."""
    linear = [name for name, part in model.named_modules() if "Linear" in type(part).__name__ or is_conv1d(part)]
    blocks = tuple(f"{name}." for name, part in model.named_modules() if "attention" in type(part).__name__.lower())
    inside = [name for name in linear if name.startswith(blocks)]
    outside = {name.rpartition(".")[2] for name in linear if name not in inside}
    ends = ((name.rpartition(".")[2], ".".join(name.split(".")[-2:])) for name in inside)
    return sorted({long if short in outside else short for short, long in ends})


def is_conv1d(part: nn.Module) -> bool:
    return type(part).__name__ == "Conv1D"
