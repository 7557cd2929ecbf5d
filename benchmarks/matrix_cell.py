"""One cell of the matrix: an adapter on a model of one family, loaded in one way. See matrix.py.

Checked with random tokens in float32: the student starts as its base (or declares that it does not), trains two steps
with finite gradients of which each trained weight gets one that is not 0, leaves the base as it was, and is saved so
that plain peft on the base as it was gives the same logits.
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
STARTED = 1e-3  # largest difference from the base at the start, as a share of the largest logit
LOADED = 2e-3  # and between what was saved and what is loaded
MOVED = 1e-5  # what training has to change at least
SHARE = 0.2  # of what training changed, that may be lost in saving
NUMBERS = re.compile(r" ?\([^()]*\d[^()]*\)")  # sizes of a tiny model, in a message


@dataclass(frozen=True)
class Text:
    """Random tokens: input_ids [B, L], and documents like these in batches of two."""

    input_ids: torch.Tensor
    batches: list[Batch]


@dataclass(frozen=True)
class Base:
    """A loaded model that nothing changes, and its logits [B, L, V]."""

    model: Any
    logits: torch.Tensor

    @classmethod
    def of(cls, model: Any, text: Text) -> "Base":
        """Return it with its logits."""
        return cls(model, logits_of(model, text))


class Failed(Exception):
    """A cell that does not work: at which stage, and why."""

    def __init__(self, at: str, why: str) -> None:
        super().__init__(at, why)
        self.at, self.why = at, why


def text(tokens: int) -> Text:
    ids = torch.randint(3, tokens, (6, 16), generator=torch.Generator().manual_seed(0))
    scored = torch.ones(16, dtype=torch.bool).numpy()
    documents = [Document(row.numpy(), scored, number) for number, row in enumerate(ids)]
    return Text(ids[:4], [collate(documents[at : at + 2]) for at in (0, 2, 4)])


def try_cell(adapter: Any, base: Base, text: Text) -> dict[str, int]:
    """Return the weights that train, with how many numbers each is. Raises Failed where the cell does not work."""
    model = copy.deepcopy(base.model)
    before = [(parameter, parameter.detach().clone()) for parameter in model.parameters()]
    with stage("attach"):
        student = attach(adapter, model, text)
        start = logits_of(student, text)
    whole = all(parameter.requires_grad for parameter in student.parameters())
    refuse_other_start(adapter, base, start)
    with stage("train"):
        train(adapter, student, text)
    if not whole and not AdapterTraits.of(adapter).changes_base:
        refuse_moved_base(before)
    wanted = logits_of(student, text)
    refuse_unmoved(wanted, start)
    if not whole:
        with stage("save"):
            loaded = logits_of(saved_and_loaded(adapter, student, base), text)
        refuse_other_loaded(wanted, loaded, off(wanted, start))
    return {name: parameter.numel() for name, parameter in trained(student).items()}


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Say at which stage something was raised; an adapter's own message is its refusal."""
    try:
        with quiet_peft():
            yield
    except RecipeError as error:
        problem = error.problems[0]
        sized = problem.path[2:] not in ((), ("target_modules",))  # an option that this model's sizes do not bear
        at = REFUSED if sized else name
        raise Failed(at, general(f"{problem.what}: {problem.why}" if problem.why else problem.what)) from error
    except UsageError as error:
        raise Failed(REFUSED, str(error).partition("\n")[0]) from error
    except Failed:
        raise
    except Exception as error:
        raise Failed(name, general(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")) from error


def general(message: str) -> str:
    """Return a message's first sentence, without the sizes of the model at hand."""
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
    """Return the logits of the text itself: some adapters put tokens before it."""
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
    """Return a weight's name without what peft puts around it."""
    return name.removeprefix("base_model.model.").replace(".default", "")


def loss_of(adapter: Any, student: Any, text: Text, step: int) -> torch.Tensor:
    """Return the cross-entropy in nats per token, and the adapter's penalty."""
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
        return PeftModel.from_pretrained(model, folder)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the largest difference as a share of the largest logit; infinite where one is not finite."""
    share = float((found - wanted).abs().max() / wanted.abs().max())
    return share if share == share else float("inf")


def refuse_other_start(adapter: Any, base: Base, start: torch.Tensor) -> None:
    share = off(start, base.logits)
    if share > STARTED and not AdapterTraits.of(adapter).starts_elsewhere:
        raise Failed("attach", f"the student does not start as its base: logits are off by {share:.1g} of the largest")


def refuse_moved_base(before: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
    moved = sum(not torch.equal(now, then) for now, then in before)
    if moved:
        raise Failed("train", f"{moved} weights of the base are others after training")


def refuse_unmoved(wanted: torch.Tensor, start: torch.Tensor) -> None:
    if off(wanted, start) < MOVED:
        raise Failed("train", "two steps of training change nothing")


def refuse_other_loaded(wanted: torch.Tensor, loaded: torch.Tensor, moved: float) -> None:
    share = off(loaded, wanted)
    if share > min(LOADED, max(SHARE * moved, MOVED)):
        raise Failed("save", f"what peft loads is another student: logits are off by {share:.1g} of the largest")


def refuse_other_weights(found: Iterable[str], expected: Iterable[str]) -> None:
    """Refuse a quantised student of which other weights train than of an unquantised one."""
    if others := sorted(set(found) ^ set(expected)):
        raise Failed("train", f"other weights train than on an unquantised student, as {plain(others[0])}")


def attention_layers(model: nn.Module) -> list[str]:
    """Return endings of the names of the linear layers of attention, which mean no other layer."""
    linear = [name for name, part in model.named_modules() if "Linear" in type(part).__name__ or is_conv1d(part)]
    blocks = tuple(f"{name}." for name, part in model.named_modules() if "attention" in type(part).__name__.lower())
    inside = [name for name in linear if name.startswith(blocks)]
    outside = {name.rpartition(".")[2] for name in linear if name not in inside}
    ends = ((name.rpartition(".")[2], ".".join(name.split(".")[-2:])) for name in inside)
    return sorted({long if short in outside else short for short, long in ends})


def is_conv1d(part: nn.Module) -> bool:
    return type(part).__name__ == "Conv1D"
