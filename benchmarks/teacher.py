"""How wrong a stored teacher is, against its bytes: angle and norm of the gradient, and the error of the loss.

    python benchmarks/teacher.py RUN                measures; resumes teacher.json next to this file, and with
                                                    `--partial FILE` also within a measurement, after each row
    python benchmarks/teacher.py RUN --draw FILE    draws the figure from teacher.json
    python benchmarks/teacher.py --quick            tiny random models; writes nothing

RUN is the directory of a finished `neoplug run llm_neo_tiny`. The gradient of forward KL by all LoRA weights is
compared with that of the whole distribution, summed over the same tokens: the angle between the two, and the ratio of
their norms. Kinds that draw at random are measured for several draws; the spread is over draws. The student is measured
as it is before training (its adapter is the identity) and after.

    truncated, renormalised   the k most probable tokens, as they are and divided by their sum
    top_k                     the same, and one bucket for all others
    drawn                     n tokens drawn with replacement, each with the share of its draws
    sampled                   threshold sampling, with a number of entries or of bytes
    states                    hidden states in three precisions

N tokens of a row, V vocabulary.
"""

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import signature
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from neoplug.files import write_atomically
from neoplug.models.head import Head
from neoplug.models.resolve import locate
from neoplug.models.vocabulary import Vocabulary
from neoplug_losses.forward_kl import ForwardKL
from neoplug_teachers.compact import bits_of
from neoplug_teachers.sampled import Sampled
from neoplug_teachers.states import States
from neoplug_teachers.top_k import TopK

STORED = Path(__file__).with_name("teacher.json")
LENGTH = 1024  # tokens of a row
BLOCK = 64  # tokens whose logits exist at a time
LOSS = ForwardKL()


@dataclass(frozen=True)
class Block:
    """Some tokens of a row.

    states  [n, H] the teacher's hidden states
    head    the teacher's
    logits  [n, V] the teacher's
    log_q   [n, V] the student's log-probabilities
    """

    states: Tensor
    head: Head
    logits: Tensor
    log_q: Tensor


@dataclass(frozen=True)
class Cell:
    """One kind of stored teacher.

    name      of the row in the table
    is_random whether it differs between draws
    gradient  (block, generator) -> (loss [n], gradient [n, V] by the student's logits, bytes)
    """

    name: str
    is_random: bool
    gradient: Callable[[Block, torch.Generator], tuple[Tensor, Tensor, float]]


def exact(block: Block, _: torch.Generator) -> tuple[Tensor, Tensor, float]:
    return *LOSS.token_gradient(block.log_q, block.logits.log_softmax(-1)), math.nan


def truncated(k: int, renormalised: bool) -> Cell:
    def gradient(block: Block, _: torch.Generator) -> tuple[Tensor, Tensor, float]:
        p, ids = block.logits.softmax(-1).topk(k)
        p = p / p.sum(-1, keepdim=True) if renormalised else p
        value = (p * (p.log() - block.log_q.gather(-1, ids))).sum(-1)
        found = (block.log_q.exp() * p.sum(-1, keepdim=True)).scatter_add_(-1, ids, -p)
        return value, found, len(p) * k * (bits_of(block.log_q.shape[-1]) / 8 + 2)

    return Cell(f"top-{k} {'renormalised' if renormalised else 'truncated'}", False, gradient)


def drawn(n: int) -> Cell:
    def gradient(block: Block, rng: torch.Generator) -> tuple[Tensor, Tensor, float]:
        log_p = block.logits.log_softmax(-1)
        ids = torch.multinomial(log_p.exp(), n, replacement=True, generator=rng)
        p = torch.full(ids.shape, 1 / n)
        value = -(p * block.log_q.gather(-1, ids)).sum(-1) - torch.special.entr(log_p.exp()).sum(-1)
        distinct = sum(len(row.unique()) for row in ids)
        size = distinct * (bits_of(block.log_q.shape[-1]) / 8 + 0.5)
        return value, block.log_q.exp().scatter_add_(-1, ids, -p), size

    return Cell(f"{n} drawn", True, gradient)


def stored(name: str, kind: Any, fitted: dict[str, float], is_random: bool = False) -> Cell:
    """Return the cell of a kind of cache that neoplug has."""

    def gradient(block: Block, rng: torch.Generator) -> tuple[Tensor, Tensor, float]:
        given = {"states": block.states, "logits": lambda _: block.logits, "fitted": fitted, "rng": rng}
        kept = taking(kind.encode_teacher, given)
        size = float(sum(tensor.numel() * tensor.element_size() for tensor in kept.values()))
        found = taking(kind.decode_teacher, {"stored": [kept], "head": block.head, "fitted": fitted})
        if "logits" in found.provides:
            return *LOSS.token_gradient(block.log_q, found.logits(slice(None)).log_softmax(-1)), size
        entries = found.sparse(slice(None)).arguments()
        return *LOSS.token_gradient_sparse(student=block.log_q, **entries), size

    return Cell(name, is_random, gradient)


def taking(hook: Callable[..., Any], given: dict[str, Any]) -> Any:
    """Call a hook with those of the arguments that it takes."""
    return hook(**{name: given[name] for name in signature(hook).parameters})


def cells(states: Tensor, head: Head) -> list[Cell]:
    """Return all kinds; `states` [n, H] are a sample of the teacher's hidden states, which thresholds are fitted on."""
    found = [Cell("exact", False, exact)]
    for k in (12, 50, 300):
        found += [truncated(k, False), truncated(k, True), stored(f"top_k {k}", TopK(k), {})]
    found += [drawn(12), drawn(50)]
    found += [stored(f"sampled, {n} entries", Sampled(n), {}, True) for n in (12, 16, 24)]
    for size in (20.0, 40.0, 80.0):
        kind = Sampled(bytes=size)
        found.append(stored(f"sampled, {size:.0f} bytes", kind, kind.fit_cache(states, head), True))
    dtypes = ("float32", "bfloat16", "int8")
    return found + [stored(f"states, {dtype}", States(dtype), {}) for dtype in dtypes]  # type: ignore[arg-type]


Key = tuple[str, int]  # name of a cell, draw


def gradients_by_hidden(
    every: dict[Key, Cell], states: Tensor, teacher: Head, hidden: Tensor, head: Tensor, seed: int
) -> dict[Key, tuple[Tensor, float, float]]:
    """Return for each cell and draw the gradient of a row by the student's hidden states [N, H], its loss, its bytes.

    head  [V, H] of the student
    """
    rngs = {(name, draw): torch.Generator().manual_seed(seed + draw) for name, draw in every}
    found = {key: (torch.empty_like(hidden), 0.0, 0.0) for key in every}
    for at in range(0, len(states), BLOCK):
        rows = slice(at, at + BLOCK)
        with torch.no_grad():
            block = Block(states[rows], teacher, teacher(states[rows]), (hidden[rows] @ head.t()).log_softmax(-1))
            for key, cell in every.items():
                value, gradient, used = cell.gradient(block, rngs[key])
                by_hidden, total, size = found[key]
                by_hidden[rows] = gradient @ head
                found[key] = by_hidden, total + float(value.sum()), size + used
    return found


@dataclass
class Sums:
    """Sums over the first rows: of gradients and losses by cell and draw, of bytes by cell."""

    rows: int
    gradients: dict[Key, Tensor]
    losses: dict[Key, float]
    sizes: dict[str, float]

    @classmethod
    def read(cls, file: Path | None) -> "Sums":
        """Return what a measurement that was stopped has written to a file; nothing without one."""
        return cls(**torch.load(file)) if file and file.exists() else cls(0, {}, {}, {})

    def write(self, file: Path) -> None:
        """Write the sums to a file, atomically."""
        content = BytesIO()
        torch.save(vars(self), content)
        write_atomically(file, content.getvalue())


def measure(rows: Tensor, teacher: Any, student: Any, draws: int, partial: Path | None = None) -> dict[str, Any]:
    """Return for each kind the angle in degrees, ratio of norms and error of the loss for each draw, and the bytes.

    rows     [R, N] token ids
    partial  file of the sums, which is written after each row and removed at the end
    """
    head = Head(teacher.get_output_embeddings(), Vocabulary(teacher.config.vocab_size))
    parameters = [weight for weight in student.parameters() if weight.requires_grad]
    sums = Sums.read(partial)
    teacher.requires_grad_(False)
    kinds = cells(hidden_of(teacher, rows[0]), head)
    every = {(cell.name, draw): cell for cell in kinds for draw in range(draws if cell.is_random else 1)}
    weight: Tensor = student.get_output_embeddings().weight.detach()
    for ids in rows[sums.rows :]:
        states, hidden = hidden_of(teacher, ids), hidden_of(student, ids)
        for key, row in gradients_by_hidden(every, states, head, hidden, weight, int(ids.sum())).items():
            by_hidden, total, size = row
            parts = torch.autograd.grad(hidden, parameters, by_hidden, retain_graph=True)
            found = torch.cat([part.flatten() for part in parts])
            sums.gradients[key] = sums.gradients[key].add_(found) if key in sums.gradients else found
            sums.losses[key] = sums.losses.get(key, 0.0) + total
            sums.sizes[key[0]] = sums.sizes.get(key[0], 0.0) + size / (draws if every[key].is_random else 1)
        sums.rows += 1
        if partial:
            sums.write(partial)
    if partial:
        partial.unlink(missing_ok=True)
    right, loss, tokens = sums.gradients["exact", 0], sums.losses["exact", 0], rows.numel()
    return {
        cell.name: {
            "bytes": sums.sizes[cell.name] / tokens,
            "draws": [
                {
                    "angle": angle(sums.gradients[cell.name, draw], right),
                    "norm": float(sums.gradients[cell.name, draw].norm() / right.norm()),
                    "loss": (sums.losses[cell.name, draw] - loss) / tokens,
                }
                for draw in range(draws if cell.is_random else 1)
            ],
        }
        for cell in kinds[1:]
    }


def angle(found: Tensor, right: Tensor) -> float:
    """Return the angle between two vectors in degrees."""
    cosine = torch.dot(found.double(), right.double()) / found.double().norm() / right.double().norm()
    return math.degrees(math.acos(min(1.0, float(cosine))))


def hidden_of(model: Any, ids: Tensor) -> Tensor:
    """Return the hidden states [N, H] before the head."""
    backbone = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden: Tensor = backbone.model(ids[None], use_cache=False).last_hidden_state[0]
    return hidden


def models(run: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield (state, teacher, student, tokenizer) of a finished run: its student untrained, then trained."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    lock = json.loads((run / "lock.json").read_text(encoding="utf-8"))
    folder = locate(lock["models"]["teacher"]["source"], None, ("teacher", "model")).path
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    teacher, tokenizer = load(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    for state in ("untrained", "trained"):
        base = load(run / "student", dtype=torch.float32)
        student = PeftModel.from_pretrained(base, run / "adapter", is_trainable=True).eval()
        if state == "untrained":
            for name, weight in student.named_parameters():
                if "lora_B" in name:
                    weight.data.zero_()
        yield state, teacher, student, tokenizer


def tiny_models() -> tuple[Any, Any]:
    """Return a random teacher and a random student with LoRA."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    torch.manual_seed(0)
    both = [LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=layers)).eval() for layers in (2, 1)]
    return both[0], get_peft_model(both[1], LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()


def text_rows(tokenizer: Any, count: int) -> Tensor:
    """Return [count, LENGTH] token ids of the documentation topics of Python."""
    from pydoc_data.topics import topics

    ids = tokenizer("\n\n".join(topics.values()), return_tensors="pt").input_ids[0]
    return ids[: count * LENGTH].view(count, LENGTH)


def table(found: dict[str, Any]) -> str:
    """Return the table of one student and number of tokens."""
    lines = ["| stored | bytes | angle | norm | error of the loss |", "|---|---|---|---|---|"]
    for name, cell in found.items():
        columns = [torch.tensor([draw[what] for draw in cell["draws"]]) for what in ("angle", "norm", "loss")]
        shown = [f"{c.mean():.3g}" + (f" +- {c.std():.1g}" if len(c) > 1 else "") for c in columns]
        lines.append(f"| {name} | {cell['bytes']:.0f} | {shown[0]}° | {shown[1]} | {shown[2]} |")
    return "\n".join(lines)


def family(name: str) -> str:
    """Return the kind of a cell without its size: "top-12 truncated" -> "top-k truncated"."""
    if name.startswith("states"):
        return "states"
    return re.sub(r"\s*\b\d+\s*", " ", name.replace("top-", "top-k ")).strip()


def draw(found: dict[str, Any]) -> bytes:
    """Return the SVG: angle against bytes, a line for each kind, a panel for each student and number of tokens."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "neoplug", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8, 2.8 * -(-len(found) // 2)), layout="constrained")
        panels = figure.subplots(-(-len(found) // 2), 2, squeeze=False).flat
        for panel, (title, kinds) in zip(panels, found.items(), strict=False):
            lines: dict[str, list[tuple[float, float, float]]] = {}
            for name, cell in kinds.items():
                angles = torch.tensor([draw["angle"] for draw in cell["draws"]])
                spread = float(angles.std()) if len(angles) > 1 else 0.0
                lines.setdefault(family(name), []).append((cell["bytes"], max(float(angles.mean()), 1e-3), spread))
            for name, points in lines.items():
                panel.errorbar(*zip(*sorted(points), strict=True), fmt="o-", markersize=3, linewidth=0.8, label=name)
            panel.set(xscale="log", yscale="log", xlabel="bytes per token", ylabel="degrees", title=title)
        figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return file.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="the directory of a finished run of llm_neo_tiny")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 16_384], help="tokens of a gradient")
    parser.add_argument("--draws", type=int, default=20, help="draws of each random kind")
    parser.add_argument("--partial", type=Path, help="file that keeps what is measured of an unfinished gradient")
    parser.add_argument("--draw", type=Path, help="draw this SVG from teacher.json instead")
    parser.add_argument("--quick", action="store_true", help="tiny random models; writes nothing")
    arguments = parser.parse_args()
    if arguments.quick:
        teacher, student = tiny_models()
        print(table(measure(torch.randint(512, (2, 96)), teacher, student, 2)))
        return
    found = json.loads(STORED.read_text(encoding="utf-8")) if STORED.exists() else {}
    if arguments.draw:
        arguments.draw.write_bytes(draw(found))
        return
    for tokens in arguments.tokens:
        for state, teacher, student, tokenizer in models(arguments.run):
            name = f"{state} student, {tokens:,} tokens"
            if name not in found:
                found[name] = measure(
                    text_rows(tokenizer, tokens // LENGTH), teacher, student, arguments.draws, arguments.partial
                )
                write_atomically(STORED, json.dumps(found, indent=1) + "\n")
            print(f"\n{name}\n\n{table(found[name])}")


if __name__ == "__main__":
    main()
