"""The cost of each loss in the objective, relative to plain PyTorch on full logits: time, memory, agreement.

    python benchmarks/losses.py           every installed loss; writes losses.json next to this file
    python benchmarks/losses.py --quick   two losses and a small vocabulary; writes nothing

Both compute the loss and its gradient with respect to the student's hidden states, from hidden states of student and
teacher [N, H] and two frozen heads [V, H], in float32. The calls alternate; a ratio is the median of the ratios of
adjacent calls. Plain PyTorch is `torch.nn.functional` if it has the loss, else the loss's formula with autograd.
`bytes` is the peak of resident memory during a call above that before it.
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
from step_arms import peak_bytes

from neoplug.models.head import Head
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import answered, installed
from neoplug.teachers.signals import StatesSignal
from neoplug.training.objective import BLOCK, Loss, objective

FILE = Path(__file__).with_suffix(".json")
HIDDEN = 576  # of SmolLM2-135M
VOCABULARIES = (49_152, 128_256, 151_936, 262_144)  # SmolLM2's, Llama 3's, Qwen 2.5's, Gemma 3's
LOGITS = 2**23  # logits of each model in one call, which sets the number of tokens
REPEATS = 3
MANY = 8_192  # tokens of the call whose peak is compared with that of one block
GROW = (
    "adaptive_kl",
    "cross_entropy",
    "forward_kl",
)  # largest, smallest and common memory; how a peak grows does not depend on the loss
FAMILY = ("forward_kl", "jsd", "reverse_kl")  # also measured together
QUICK = ("forward_kl", "jsd")

Call = Callable[[], tuple[Tensor, Tensor]]  # the loss of each token [N], and the gradient of their sum [N, H]


@dataclass(frozen=True, eq=False)
class Case:
    """The inputs of a call: heads, hidden states [N, H] of student (`hidden`) and teacher (`states`), labels [N]."""

    student: Head
    teacher: Head
    hidden: Tensor
    states: Tensor
    labels: Tensor

    def cut(self, tokens: int) -> "Case":
        """Return the case with only the first `tokens`."""
        return Case(self.student, self.teacher, self.hidden[:tokens], self.states[:tokens], self.labels[:tokens])


def make_case(vocabulary: int, tokens: int) -> Case:
    """Return random heads and states: logits have standard deviation 3, and both models' are correlated."""
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
    """Return whether a loss reads an argument of `token_loss`."""
    return argument in inspect.signature(plugin.token_loss).parameters


def as_loss(name: str, plugin: Any) -> Loss:
    """Return a plugin as a loss of the loop, whose hooks accept all arguments."""
    hooks = {
        hook: partial(given, getattr(plugin, hook))
        for hook in ("token_loss", "token_gradient")
        if hasattr(plugin, hook)
    }
    return Loss(name, 1.0, **hooks)


def given(hook: Callable[..., Any], **arguments: Any) -> Any:
    """Call a hook with those of the arguments that it takes."""
    return hook(**{name: arguments[name] for name in inspect.signature(hook).parameters})


class NoLoss:
    """A loss without cost, to measure heads and normalisation alone."""

    def token_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Not called, since `token_gradient` exists."""
        raise NotImplementedError

    def token_gradient(self, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
        """Return tensors of the right shapes without computing."""
        return student[:, 0], student


def in_objective(case: Case, plugins: dict[str, Any]) -> Call:
    """Return a call of the objective, as a run makes it."""
    wrapped = [as_loss(name, plugin) for name, plugin in plugins.items()]
    reads_teacher = any(takes(plugin, "teacher") for plugin in plugins.values())

    def call() -> tuple[Tensor, Tensor]:
        hidden = case.hidden.detach().requires_grad_()
        signal = StatesSignal(case.states, case.teacher) if reads_teacher else None
        total, values = objective(wrapped, hidden, case.student, signal, case.labels, 0.5)
        total.backward()
        return values.sum(0), hidden.grad

    return call


def in_plain_pytorch(case: Case, name: str, plugin: Any) -> Call:
    """Return a call of plain PyTorch on full logits."""

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
    """Return the loss of each token [N] from logits [N, V], in plain PyTorch."""
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
    """Costs and result of repeated calls.

    seconds, cpu_seconds  of each call; processor time sums over threads and is not affected by other processes
    peak                  largest resident bytes during a call above those before it
    answer                what the last call returned
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    peak: int = 0
    answer: tuple[Tensor, ...] = ()

    def add(self, call: Call) -> None:
        """Make a call and add its costs."""
        ctypes.CDLL(None).malloc_trim(0)  # else memory that an earlier call freed would not be counted
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is reset
        before, began, used = resident("VmRSS"), perf_counter(), process_time()
        self.answer = call()
        self.seconds.append(perf_counter() - began)
        self.cpu_seconds.append(process_time() - used)
        self.peak = max(self.peak, resident("VmHWM") - before)


def resident(what: str) -> int:
    """Return a field of this process's status, as VmRSS (resident memory) or VmHWM (its peak), in bytes."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def in_turns(calls: dict[str, Call], repeats: int = REPEATS) -> dict[str, Measured]:
    """Measure calls, each once per round."""
    measured = {name: Measured() for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            measured[name].add(call)
    return measured


def compare(case: Case, name: str, plugin: Any) -> dict[str, Any]:
    """Measure one loss in the objective and in plain PyTorch."""
    for warm in (in_objective(case.cut(8), {name: plugin}), in_plain_pytorch(case.cut(8), name, plugin)):
        warm()
    calls = {"objective": in_objective(case, {name: plugin}), "plain": in_plain_pytorch(case, name, plugin)}
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
    """Return median, lowest and highest ratio of paired times."""
    found = sorted(a / b for a, b in zip(above, below, strict=True))
    return {"median": median(found), "low": found[0], "high": found[-1]}


def off(found: Tensor, expected: Tensor) -> float:
    """Return the relative error, by norms."""
    return float((found - expected).norm() / expected.norm())


def products(case: Case) -> Call:
    """Return a call of the three products that every exact loss needs: both heads, and the gradient."""

    def call() -> tuple[Tensor, Tensor]:
        student, teacher = (head.module.weight for head in (case.student, case.teacher))
        return (case.states @ teacher.t())[:, 0], (case.hidden @ student.t()) @ student

    return call


def growth(case: Case, plugins: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the peak tensor bytes of one block of tokens and of all tokens, and of plain PyTorch for a quarter of all.

    Resident memory would include memory that the C library keeps, which varies between calls.
    """
    tokens = [min(BLOCK // case.student.vocabulary.size, len(case.labels) // 2), len(case.labels)]
    for name, plugin in plugins.items():
        peaks = [peak_tensor_bytes(in_objective(case.cut(count), {name: plugin})) for count in tokens]
        quarter = case.cut(tokens[1] // 4)
        plain = peak_tensor_bytes(in_plain_pytorch(quarter, name, plugin))
        row = {"loss": name, "tokens": tokens, "bytes": peaks, "ratio": peaks[1] / peaks[0]}
        yield row | {"plain": {"tokens": len(quarter.labels), "bytes": plain}}


def peak_tensor_bytes(call: Call) -> int:
    """Return the peak bytes of a call's tensors."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    return peak_bytes(profiled)


def together(case: Case, plugins: dict[str, Any]) -> dict[str, Any]:
    """Measure several losses in one call, each of them alone, and no loss."""
    calls = {name: in_objective(case, {name: plugin}) for name, plugin in plugins.items()}
    calls |= {"nothing": in_objective(case, {"nothing": NoLoss()})}
    calls |= {"together": in_objective(case, plugins)}
    seconds = {name: measured.seconds for name, measured in in_turns(calls).items()}
    middle = {name: median(found) for name, found in seconds.items()}
    apart = sum(middle[name] for name in plugins)
    return {
        "seconds": seconds,
        "of_the_sum": middle["together"] / apart,
        "of_the_sum_normalised_once": middle["together"] / (apart - (len(plugins) - 1) * middle["nothing"]),
    }


def measure(*, quick: bool) -> dict[str, Any]:
    """Return all measurements, ready for JSON."""
    chosen = {name: plugin for name, plugin in losses().items() if not quick or name in QUICK}
    vocabularies, logits, many = ((2_048,), 2**20, 256) if quick else (VOCABULARIES, LOGITS, MANY)
    found, floor = [], []
    for vocabulary in vocabularies:
        case = make_case(vocabulary, logits // vocabulary)
        (measured,) = in_turns({"products": products(case)}).values()
        floor.append({"vocabulary": vocabulary, "tokens": len(case.labels), "seconds": measured.seconds})
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
