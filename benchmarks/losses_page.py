"""Generates docs/reference/losses.md and its pictures: formula, behaviour on an example, and cost of each loss.

    python benchmarks/losses_page.py           writes the page and docs/pictures; the costs come from losses.json
    python benchmarks/losses_page.py --quick   prints two losses and stores nothing

The example is a teacher with two modes: .65 N(-2, .7) + .35 N(2.4, .7) over a grid of GRID points, the vocabulary. The
student is one discretised Gaussian, trained with the gradient of the loss in float64 from two initial positions: the
larger mode and the smaller mode. A mode-covering loss widens both students; a mode-seeking loss leaves each where it
starts.
"""

import argparse
import html
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from itertools import takewhile
from operator import or_
from pathlib import Path
from statistics import median
from typing import Any

import torch
from losses import FILE, VOCABULARIES, given, losses, takes
from torch import Tensor

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "losses.md"
PICTURES = PAGE.parents[1] / "pictures"
GRID = torch.linspace(-6, 6, 49, dtype=torch.float64)
MODES = ((-2.0, 0.7), (2.4, 0.7))  # (mean, width) of the modes, and of the initial students
NEAR = (-1.5, 1.0)  # (mean, width) of the student near the larger mode whose gradient is drawn
MISSED = GRID > 1.0  # the points of the smaller mode
STEPS, RATE = 300, 0.1
QUICK = ("forward_kl", "reverse_kl")
RELATIVE_TO, AT = "forward_kl", VOCABULARIES[1]

# When to choose which loss. Everything else on the page about a loss comes from its docstring.
WHEN = {
    "adaptive_kl": "both KLs are wanted and the data decides between them: forward on the head, reverse on the tail",
    "alpha_beta": "a point between mode covering and mode seeking is searched; the default is four times `hellinger`",
    "concrete_score": "logits are matched up to a shift, weighted by probability",
    "cross_entropy": "the student learns the text itself, with or without a teacher",
    "decoupled_kl": "labels are correct and the teacher is confident, so that forward KL carries little of the rest",
    "distillm2": "a bounded mix of both directions is wanted; its contrastive part needs rollouts: not implemented",
    "forward_kl": "there is no reason for another loss: calibrated, cheap, the common baseline",
    "hellinger": "teacher and student are far apart and the loss must be bounded in both directions",
    "jeffreys": "forward KL spreads too far and reverse KL drops too many modes",
    "jsd": "a bounded loss is wanted, for example with a noisy teacher; set its weight with care (see strength)",
    "listwise": "the teacher's ranking is more reliable than its probabilities, as with a badly calibrated teacher",
    "logit_mse": "the vocabulary is small or its tail matters; on a large vocabulary the tail dominates",
    "pairwise": "only the order of the most likely tokens matters; combine it with another loss",
    "renyi": "one parameter must set how much the tokens with the largest error count",
    "reverse_kl": "the student is too small for the teacher's distribution and must not invent modes",
    "skew_forward_kl": "forward KL is wanted, but its gradient is too large on tokens that the student finds unlikely",
    "skew_reverse_kl": "reverse KL is wanted, but the teacher gives the student's predictions almost no probability",
    "taid": "the student is far from its teacher: the target moves from the student to the teacher",
    "todi": "tokens that the student underestimates follow forward KL, and tokens that it overestimates reverse KL",
    "total_variation": "outliers must not dominate; slow at tokens that the student finds impossible",
}


def gaussian(mean: Tensor, log_width: Tensor) -> Tensor:
    """Return log-probabilities [n, V] over the grid, from [n] means and [n] logs of widths."""
    return (-((GRID - mean[:, None]) ** 2) / (2 * (2 * log_width[:, None]).exp())).log_softmax(-1)


def student_of(starts: Any) -> list[Tensor]:
    """Return the parameters of students, [n] means and [n] logs of widths, from (mean, width) pairs."""
    mean, width = torch.tensor(starts, dtype=torch.float64).unbind(-1)
    return [mean.clone().requires_grad_(), width.log().requires_grad_()]


@cache
def teacher() -> Tensor:
    """Return the teacher's log-probabilities, [V]."""
    return (torch.tensor([[0.65, 0.35]], dtype=torch.float64) @ gaussian(*student_of(MODES)).detach().exp())[0].log()


def expected(plugin: Any, log_q: Tensor) -> Tensor:
    """Return the loss of each student [n]; of a loss that reads labels, the mean over labels drawn from the teacher.

    `progress` is 0.5, for losses that change during a run.
    """
    log_p = teacher()
    answers = torch.arange(len(GRID)) if takes(plugin, "labels") else torch.zeros(1, dtype=torch.int64)
    rows = log_q.repeat_interleave(len(answers), 0)
    values = given(
        plugin.token_loss, student=rows, teacher=log_p.expand_as(rows), labels=answers.repeat(len(log_q)), progress=0.5
    ).view(len(log_q), -1)
    return values @ log_p.exp() if takes(plugin, "labels") else values[:, 0]


@dataclass(frozen=True)
class Fit:
    """The behaviour of a loss on the example.

    final   final (mean, width) of the students that started on the larger and on the smaller mode
    push    [V] negative gradient with respect to the logits of a student near the larger mode
    raised  share of the positive part of `push` that is on the smaller mode
    """

    final: tuple[tuple[float, float], ...]
    push: Tensor
    raised: float

    def __str__(self) -> str:
        return ", ".join(f"{mean:.1f} ± {width:.1f}" for mean, width in self.final)

    @property
    def behaviour(self) -> str:
        """Classify the final students: the width of a mode is .7, that of the teacher 2.2."""
        wide = [width > 1.5 for _, width in self.final]
        on_mode = [
            any(abs(mean - place) < 0.5 and size / 2 < width < 1.7 * size for place, size in MODES)
            for mean, width in self.final
        ]
        if all(wide):
            return "covers"
        if all(on_mode):
            return "seeks"
        return "between" if all(map(or_, wide, on_mode)) else "neither"


def fit(plugin: Any) -> Fit:
    """Train the two students, and measure the gradient of a third."""
    parameters = student_of(MODES)
    optimizer = torch.optim.Adam(parameters, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in range(STEPS):
        optimizer.zero_grad()
        expected(plugin, gaussian(*parameters)).sum().backward()
        optimizer.step()
        schedule.step()
    mean, log_width = (parameter.detach() for parameter in parameters)
    push = push_of(plugin)
    positive = push.clamp(min=0)
    final = tuple(zip(mean.tolist(), log_width.exp().tolist(), strict=True))
    return Fit(final, push, float(positive[MISSED].sum() / positive.sum()))


def push_of(plugin: Any) -> Tensor:
    """Return the negative gradient with respect to the logits of the student NEAR, [V]."""
    logits = gaussian(*student_of([NEAR])).detach().requires_grad_()
    expected(plugin, logits.log_softmax(-1)).sum().backward()
    assert logits.grad is not None
    return -logits.grad[0]


def picture(name: str, found: Fit) -> str:
    """Return an SVG: on the left the teacher and both final students, on the right the negative gradient of a third."""
    width, height = 120, 50
    p, (first, second) = teacher().exp(), gaussian(*student_of(found.final)).detach().exp()
    top = float(p.max()) * 1.6
    scale = float(found.push.abs().max()) or 1.0
    step = width / (len(GRID) - 1)

    def line(heights: Tensor) -> str:
        levels = (height - 2 - (heights / top).clamp(max=1) * (height - 6)).tolist()
        return " ".join(f"{number * step:.1f},{level:.1f}" for number, level in enumerate(levels))

    bars = "".join(
        f"M{width + 10 + number * step:.1f},{height / 2:.0f}v{-share * (height / 2 - 3):.1f}"
        for number, share in enumerate((found.push / scale).tolist())
        if abs(share) > 0.005
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * width + 10}" height="{height}" fill="none">',
            f"<title>{html.escape(name)}: {found.behaviour}; lands at {found}</title>",
            f'<polygon points="0,{height - 2} {line(p)} {width},{height - 2}" fill="#999" fill-opacity=".45"/>',
            f'<polyline points="{line(first)}" stroke="#1f77b4" stroke-width="1.5"/>',
            f'<polyline points="{line(second)}" stroke="#e07000" stroke-width="1.5" stroke-dasharray="4 2"/>',
            f'<path d="M{width + 10},{height / 2:.0f}h{width}" stroke="#999" stroke-width=".5"/>',
            f'<path d="{bars}" stroke="#1f77b4" stroke-width="2"/>',
            "</svg>",
            "",
        ]
    )


def docstring_of(plugin: Any) -> str:
    """Return the docstring of the file that holds a loss."""
    return str(sys.modules[type(plugin).__module__].__doc__)


def formula(plugin: Any) -> str:
    """Return the first indented block of a loss's docstring as one line of code."""
    lines = docstring_of(plugin).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("    "))
    block = takewhile(lambda line: line.startswith("    "), lines[start:])
    return f"`{'; '.join(' '.join(line.split()) for line in block)}`"


def source(plugin: Any) -> str:
    """Return the source that a loss's docstring names, with papers as links."""
    found = re.search(r"^Source[^:]*: (.*?)\.?\s*\Z", docstring_of(plugin), re.MULTILINE | re.DOTALL)
    text = " ".join(found[1].split()) if found else "-"
    text = re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[\1](https://arxiv.org/abs/\1)", text)
    return re.sub(r"doi (10\.\S+?)(?=[.,;)]?(?:\s|$))", r"[doi](https://doi.org/\1)", text)


def options(plugin: Any) -> str:
    """Return the options with their defaults, in Markdown."""
    return ", ".join(f"`{field.name}: {shown(getattr(plugin, field.name))}`" for field in fields(plugin)) or "none"


def shown(value: Any) -> str:
    """Return a default as it is written in a recipe."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def cost(name: str, measured: dict[str, Any]) -> str:
    """Return a loss's time as a multiple of forward KL's in the same run."""
    seconds = {row["loss"]: min(row["seconds"]["objective"]) for row in measured["found"] if row["vocabulary"] == AT}
    return f"{seconds[name] / seconds[RELATIVE_TO]:.2f}" if name in seconds else "-"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", r"\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def overview(fits: dict[str, Fit], measured: dict[str, Any]) -> str:
    """Return the table with a row for each loss: its behaviour on the example and its cost."""
    head = ["loss", "behaviour", "final mean ± width", "raised on the missed mode", "cost"]
    rows = [
        [f"[`{name}`](#{name})", found.behaviour, str(found), f"{found.raised:.0%}", cost(name, measured)]
        for name, found in fits.items()
    ]
    return table(head, rows)


def section(name: str, plugin: Any) -> str:
    """Return the section of a loss: its formula, its picture, and when to choose it."""
    return "\n".join(
        [
            f"### {name}",
            "",
            formula(plugin),
            "",
            f"![{name}](../pictures/{name}.svg)",
            "",
            f"- Options: {options(plugin)}",
            f"- Choose it where {WHEN[name]}.",
            f"- Source: {source(plugin)}",
        ]
    )


def catalogue(plugins: dict[str, Any], fits: dict[str, Fit], measured: dict[str, Any]) -> str:
    """Return the overview table, then a section for each loss."""
    return "\n\n".join([overview(fits, measured), *(section(*item) for item in plugins.items())])


def costs(measured: dict[str, Any]) -> str:
    """Return the table of the objective's time and memory, relative to plain PyTorch."""
    vocabularies = sorted({row["vocabulary"] for row in measured["found"]})
    rows = []
    for name in sorted({row["loss"] for row in measured["found"]}):
        found = {row["vocabulary"]: row for row in measured["found"] if row["loss"] == name}
        cells = [cell(found[vocabulary]) for vocabulary in vocabularies]
        rows.append([f"`{name}`", *cells, f"{max(row['gradient_off'] for row in found.values()):.0e}"])
    return table(["loss", *(f"V = {vocabulary:,}" for vocabulary in vocabularies), "gradient off by"], rows)


def cell(row: dict[str, Any]) -> str:
    """Return time with its spread and memory of a loss, relative to plain PyTorch."""
    ratio, memory = row["ratio"], row["bytes"]["objective"] / row["bytes"]["plain"]
    return f"{ratio['median']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f}) · {memory:.2f}"


def summary(measured: dict[str, Any]) -> Iterator[str]:
    """Yield the measurements outside the tables, one sentence each."""
    machine, joint = measured["machine"], measured["together"]
    tokens = {row["vocabulary"]: row["tokens"] for row in measured["found"]}
    sizes = ", ".join(f"{count:,} at {vocabulary:,}" for vocabulary, count in sorted(tokens.items()))
    yield (
        f"Measured with torch {machine['torch']} on {machine['threads']} threads of a CPU, H = {measured['hidden']}, "
        f"tokens: {sizes}."
    )
    if machine["load"] > 1.5 * machine["cpus"]:
        yield f"Other processes used the machine (load {machine['load']:.1f}): times are approximate, memory is exact."
    most = max(measured["growth"], key=lambda row: row["ratio"])
    yield (
        f"With {most['tokens'][1]:,} tokens its tensors hold at most {most['ratio']:.2f} times what they hold with one "
        f"block's {most['tokens'][0]:,} (`{most['loss']}`, the most of {len(measured['growth'])}); plain PyTorch needs "
        f"{most['plain']['bytes'] / most['bytes'][1]:.1f} times as much for {most['plain']['tokens']:,} tokens."
    )
    floors = {row["vocabulary"]: median(row["seconds"]) for row in measured["products"]}
    shares = [
        floors[row["vocabulary"]] / median(row["seconds"]["plain"])
        for row in measured["found"]
        if row["loss"] == RELATIVE_TO
    ]
    yield f"The three products alone are {min(shares):.2f} to {max(shares):.2f} of plain PyTorch's `{RELATIVE_TO}`."
    names = ", ".join(f"`{name}`" for name in joint["seconds"] if name not in ("nothing", "together"))
    yield (
        f"Together, {names} take {joint['of_the_sum']:.2f} of the sum of each alone: "
        f"{joint['of_the_sum_normalised_once']:.2f} of what it is with heads and normalisation counted once."
    )


def values_and_gradient_norms() -> dict[str, tuple[float, float]]:
    """Return {loss: (value, gradient norm)} of KLs and JSDs, means over tokens, with a vocabulary of Llama 3's size.

    The teacher's logits are the student's, of standard deviation 3, with noise of standard deviation 0.5.
    """
    rng = torch.Generator().manual_seed(0)
    z_q = 3 * torch.randn(16, AT, generator=rng, dtype=torch.float64)
    log_p = (z_q + 0.5 * torch.randn(z_q.shape, generator=rng, dtype=torch.float64)).log_softmax(-1)
    plugins = {name: losses()[name] for name in ("forward_kl", "reverse_kl")}
    plugins |= {f"jsd at beta {beta}": type(losses()["jsd"])(beta=beta) for beta in (0.1, 0.5, 0.9)}
    found = {}
    for name, plugin in plugins.items():
        logits = z_q.clone().requires_grad_()
        values = plugin.token_loss(logits.log_softmax(-1), log_p)
        values.sum().backward()
        assert logits.grad is not None
        found[name] = (float(values.mean().detach()), float(logits.grad.norm(dim=-1).mean()))
    return found


def strength() -> str:
    """Return the table of values and gradient norms on the same logits."""
    found = values_and_gradient_norms()
    rows = [[name, f"{value:.4f}", f"{norm / found[RELATIVE_TO][1]:.2f}"] for name, (value, norm) in found.items()]
    return table(["loss", "nats", "gradient norm, forward_kl's = 1"], rows)


def replace_between(text: str, mark: str, inner: str) -> str:
    """Return the page with the text between two markers replaced."""
    pattern = rf"(<!-- {mark} -->\n).*?(<!-- end of {mark} -->)"
    made, count = re.subn(pattern, lambda found: f"{found[1]}\n{inner}\n\n{found[2]}", text, flags=re.DOTALL)
    assert count == 1, f"{PAGE} has {count} markers of {mark}"
    return made


def page(text: str, fits: dict[str, Fit], measured: dict[str, Any]) -> str:
    """Return the text of the page, regenerated between its markers."""
    text = replace_between(text, "catalogue", catalogue(losses(), fits, measured))
    text = replace_between(text, "strength", strength())
    return replace_between(text, "costs", "\n".join([*summary(measured), "", costs(measured)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print two losses and store nothing")
    quick = parser.parse_args().quick
    measured = json.loads(FILE.read_text(encoding="utf-8"))
    plugins = {name: plugin for name, plugin in losses().items() if not quick or name in QUICK}
    fits = {name: fit(plugin) for name, plugin in plugins.items()}
    if quick:
        print(catalogue(plugins, fits, measured))
        return
    PICTURES.mkdir(exist_ok=True)
    for name, found in fits.items():
        (PICTURES / f"{name}.svg").write_text(picture(name, found), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), fits, measured), encoding="utf-8")


if __name__ == "__main__":
    main()
