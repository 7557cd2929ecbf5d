"""The cost of each loss in the objective, relative to plain PyTorch on whole logits: time, memory, agreement.

    python benchmarks/losses.py           every installed loss; writes losses.json next to this file
    python benchmarks/losses.py --quick   two losses and a small vocabulary; writes nothing

Both ways go from hidden states of student and teacher [N, H] and two frozen heads [V, H] to the loss and its gradient
by the student's hidden states, in float32, one after the other and repeated in turns; a ratio is the median of those of
neighbours. Plain PyTorch is `torch.nn.functional` where it has the loss, else the loss's own formula by autograd.
`bytes` is the most memory resident during a call above what was resident before it.
"""

import argparse
import ctypes
import inspect
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
from step_arms import most_held

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import answered, installed
from neoplug.teachers.live import LiveSignal
from neoplug.training.objective import BLOCK, Loss, objective

FILE = Path(__file__).with_suffix(".json")
HIDDEN = 576  # SmolLM2-135M's
VOCABULARIES = (49_152, 128_256, 151_936, 262_144)  # SmolLM2's, Llama 3's, Qwen 2.5's, Gemma 3's
LOGITS = 2**23  # of each model, in one call: as many tokens as make them
REPEATS = 3
MANY = 8_192  # tokens of a call whose peak is held against one block's
GROW = ("adaptive_kl", "cross_entropy", "forward_kl")  # most, least and common: a peak grows by no loss's doing
FAMILY = ("forward_kl", "jsd", "reverse_kl")  # measured together, too
QUICK = ("forward_kl", "jsd")

Call = Callable[[], tuple[Tensor, Tensor]]  # the loss of each token [N], and the gradient of their sum [N, H]


@dataclass(frozen=True, eq=False)
class Case:
    """What a call is made of: hidden states [N, H] of both, both heads, answer tokens [N]."""

    student: Head
    teacher: Head
    hidden: Tensor
    states: Tensor
    labels: Tensor

    def cut(self, tokens: int) -> "Case":
        """Return the case of the first `tokens`."""
        return Case(self.student, self.teacher, self.hidden[:tokens], self.states[:tokens], self.labels[:tokens])


def make_case(vocabulary: int, tokens: int) -> Case:
    """Return random heads and states: logits of standard deviation 3, the teacher's correlated with the student's."""
    rng = torch.Generator().manual_seed(vocabulary)
    heads = []
    for share in (0.0, 0.9):
        layer = nn.Linear(HIDDEN, vocabulary, bias=False).requires_grad_(False)
        layer.weight.normal_(std=3 * (1 - share**2) ** 0.5 / HIDDEN**0.5, generator=rng)
        if share:
            layer.weight.add_(heads[0].module.weight, alpha=share)
        heads.append(Head(layer, Vocabulary(vocabulary)))
    hidden = torch.randn(tokens, HIDDEN, generator=rng)
    return Case(*heads, hidden, hidden.clone(), torch.randint(vocabulary, (tokens,), generator=rng))


def losses() -> dict[str, Any]:
    """Return {name: plugin} of neoplug's own losses, each with its default options."""
    classes = {entry.name: entry.load() for entry in installed() if entry.package == "neoplug"}
    return {name: cls() for name, cls in sorted(classes.items()) if "token_loss" in answered(cls)}


def takes(plugin: Any, argument: str) -> bool:
    return argument in inspect.signature(plugin.token_loss).parameters


def as_loss(name: str, plugin: Any) -> Loss:
    """Return a loss as the loop makes it: hooks that take all arguments."""
    hooks = {
        hook: partial(given, getattr(plugin, hook))
        for hook in ("token_loss", "token_gradient")
        if hasattr(plugin, hook)
    }
    return Loss(name, 1.0, **hooks)


def given(hook: Callable[..., Any], **arguments: Any) -> Any:
    return hook(**{name: arguments[name] for name in inspect.signature(hook).parameters})


class Nothing:
    """A loss that costs nothing: what is left is heads and normalisation."""

    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Never called: there is a closed form."""
        raise NotImplementedError

    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return what is at hand."""
        return student[:, 0], student


def through_the_objective(case: Case, plugins: dict[str, Any]) -> Call:
    """Return the call that a run makes."""
    made = [as_loss(name, plugin) for name, plugin in plugins.items()]
    looks = any(takes(plugin, "teacher") for plugin in plugins.values())

    def call() -> tuple[Tensor, Tensor]:
        hidden = case.hidden.detach().requires_grad_()
        signal = LiveSignal(case.states, case.teacher) if looks else None
        total, values = objective(made, hidden, case.student, signal, case.labels, 0.5)
        total.backward()
        return values.sum(0), hidden.grad

    return call


def on_whole_logits(case: Case, name: str, plugin: Any) -> Call:
    """Return the call that a plain training loop makes."""

    def call() -> tuple[Tensor, Tensor]:
        hidden = case.hidden.detach().requires_grad_()
        logits = functional.linear(hidden, case.student.module.weight)
        teacher = None
        if takes(plugin, "teacher"):
            with torch.no_grad():
                teacher = functional.linear(case.states, case.teacher.module.weight).log_softmax(-1)
        values = plain(name, plugin, logits, teacher, case.labels)
        values.sum().backward()
        return values.detach(), hidden.grad

    return call


def plain(name: str, plugin: Any, logits: Tensor, log_p: Tensor | None, labels: Tensor) -> Tensor:
    """Return the loss of each token [N] as one would write it, from logits [N, V]."""
    if name == "cross_entropy":
        return functional.cross_entropy(logits, labels, reduction="none")
    log_q = logits.log_softmax(-1)
    del logits
    if name == "forward_kl":
        return functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    if name == "reverse_kl":
        return functional.kl_div(log_p, log_q, log_target=True, reduction="none").sum(-1)
    return given(plugin.token_loss, student=log_q, teacher=log_p, labels=labels, progress=0.5)


@dataclass
class Measured:
    """What repeated calls took and gave.

    seconds, cpu_seconds  of each call; processor time counts every thread, and heeds no neighbours on the machine
    peak                  most bytes resident during a call above what was resident before
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    answer: tuple[Tensor, ...] = ()

    def add(self, call: Call) -> None:
        """Call once more."""
        ctypes.CDLL(None).malloc_trim(0)  # else memory that an earlier call freed would be used unseen
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is reset
        before, began, used = resident("VmRSS"), perf_counter(), process_time()
        self.answer = call()
        self.seconds.append(perf_counter() - began)
        self.cpu_seconds.append(process_time() - used)
        self.peak = max(self.peak, resident("VmHWM") - before)


def resident(what: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def in_turns(calls: dict[str, Call], repeats: int = REPEATS) -> dict[str, Measured]:
    measured = {name: Measured() for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            measured[name].add(call)
    return measured


def compare(case: Case, name: str, plugin: Any) -> dict[str, Any]:
    """Measure one loss both ways."""
    for warm in (through_the_objective(case.cut(8), {name: plugin}), on_whole_logits(case.cut(8), name, plugin)):
        warm()
    calls = {"objective": through_the_objective(case, {name: plugin}), "plain": on_whole_logits(case, name, plugin)}
    ours, plain = in_turns(calls).values()
    return {
        "seconds": {"objective": ours.seconds, "plain": plain.seconds},
        "ratio": ratio(ours.seconds, plain.seconds),
        "cpu_ratio": ratio(ours.cpu_seconds, plain.cpu_seconds),
        "bytes": {"objective": ours.peak, "plain": plain.peak},
        "value_off": off(ours.answer[0], plain.answer[0]),
        "gradient_off": off(ours.answer[1], plain.answer[1]),
    }


def ratio(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return median, lowest and highest ratio of neighbours."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    return {"median": median(found), "low": found[0], "high": found[-1]}


def off(found: Tensor, expected: Tensor) -> float:
    """Return the difference as a share of what was expected, by norms."""
    return float((found - expected).norm() / expected.norm())


def products(case: Case) -> Call:
    """Return the call of the three products that no exact loss can do without: both heads, and the gradient."""

    def call() -> tuple[Tensor, Tensor]:
        student, teacher = (head.module.weight for head in (case.student, case.teacher))
        return (case.states @ teacher.t())[:, 0], (case.hidden @ student.t()) @ student

    return call


def growth(case: Case, plugins: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what tensors hold at most for one block of tokens and for all of the case's; plain PyTorch's for a quarter.

    Resident memory would have the holes of the C library in it, which are not the same in two calls.
    """
    tokens = [min(BLOCK // case.student.vocabulary.size, len(case.labels) // 2), len(case.labels)]
    for name, plugin in plugins.items():
        peaks = [held(through_the_objective(case.cut(count), {name: plugin})) for count in tokens]
        quarter = case.cut(tokens[1] // 4)
        plain = held(on_whole_logits(quarter, name, plugin))
        row = {"loss": name, "tokens": tokens, "bytes": peaks, "ratio": peaks[1] / peaks[0]}
        yield row | {"plain": {"tokens": len(quarter.labels), "bytes": plain}}


def held(call: Call) -> int:
    """Return the most bytes that a call's tensors hold at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    return most_held(profiled)


def together(case: Case, plugins: dict[str, Any]) -> dict[str, Any]:
    """Measure several losses in one call, each alone, and none."""
    calls = {name: through_the_objective(case, {name: plugin}) for name, plugin in plugins.items()}
    calls |= {"nothing": through_the_objective(case, {"nothing": Nothing()})}
    calls |= {"together": through_the_objective(case, plugins)}
    seconds = {name: measured.seconds for name, measured in in_turns(calls).items()}
    middle = {name: median(found) for name, found in seconds.items()}
    apart = sum(middle[name] for name in plugins)
    return {
        "seconds": seconds,
        "of_the_sum": middle["together"] / apart,
        "of_the_sum_normalised_once": middle["together"] / (apart - (len(plugins) - 1) * middle["nothing"]),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """Return everything that is measured, JSON-ready."""
    chosen = {name: plugin for name, plugin in losses().items() if not quick or name in QUICK}
    vocabularies, logits, many = ((2_048,), 2**20, 256) if quick else (VOCABULARIES, LOGITS, MANY)
    found, floor = [], []
    for vocabulary in vocabularies:
        case = make_case(vocabulary, logits // vocabulary)
        (bare,) = in_turns({"products": products(case)}).values()
        floor.append({"vocabulary": vocabulary, "tokens": len(case.labels), "seconds": bare.seconds})
        for name, plugin in chosen.items():
            row = {"loss": name, "vocabulary": vocabulary, "tokens": len(case.labels)}
            found.append(row | compare(case, name, plugin))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)  # it takes minutes
        del case
    case = make_case(vocabularies[0], many)
    family = {name: plugin for name, plugin in chosen.items() if name in FAMILY}
    machine = {"cpus": os.cpu_count(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    return {
        "command": "python benchmarks/losses.py",
        "machine": machine | {"system": platform.platform(), "torch": torch.__version__},
        "hidden": HIDDEN,
        "found": found,
        "products": floor,
        "growth": list(growth(case, {name: plugin for name, plugin in chosen.items() if quick or name in GROW})),
        "together": together(case.cut(logits // vocabularies[0]), family),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two losses, a small vocabulary; writes nothing")
    quick = parser.parse_args().quick
    found = measure(quick=quick)
    text = json.dumps(found, indent=1)
    if quick:
        print(text)
    else:
        FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
