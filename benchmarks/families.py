"""Layouts, loading and attention of each model family, measured on tiny random models.

python benchmarks/families.py          writes docs/reference/families.md
python benchmarks/families.py --quick  prints two families and stores nothing
"""

import argparse
import importlib.metadata
import logging
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from neoplug.data.batch import Document, collate
from neoplug.errors import NeoplugError
from neoplug.models.language_model import LanguageModel
from neoplug.models.load import load_config, load_model, load_tokenizer, meta_model
from neoplug.models.resolve import locate
from neoplug.models.verify import LAYOUTS, head_name, isolation_failure, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import Plugins, answered, build, find, installed
from neoplug.testing.families import FAMILIES, WINDOW, make

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "families.md"
LENGTHS = (3 * WINDOW, 9, 2 * WINDOW)  # tokens of the documents that are read together
ATTENTION = ("eager", "sdpa")
QUICK = ("llama", "opt")
PACKAGES = ("neoplug", "torch", "transformers", "peft", "bitsandbytes")


@dataclass(frozen=True)
class Cell:
    """One layout of one loaded model.

    off      largest difference of a document's logits in a batch from its logits alone, relative to the largest logit;
             None if the model cannot read the layout
    refused  why a run rejects the layout; None if it passes the verification
    """

    off: float | None
    refused: str | None

    def __str__(self) -> str:
        if self.off is None:
            return "cannot be read"
        return f"{self.off:.0e}" if self.refused is None else f"**leaks** {self.off:.2g}"


@dataclass(frozen=True)
class Loaded:
    """A family loaded in one way.

    layout     the layout that a run takes
    cells      each layout's results
    quantised  the share of the matrices, without embeddings and head, that is quantised
    """

    layout: str
    cells: dict[str, Cell]
    quantised: float

    def __str__(self) -> str:
        return f"{self.cells[self.layout]} ({self.layout})"


def loaders() -> dict[str, type]:
    """Return the installed plugins of the section `load`."""
    classes = {entry.name: entry.load() for entry in installed() if entry.package == "neoplug"}
    return {name: cls for name, cls in sorted(classes.items()) if "load_kwargs" in answered(cls)}


def documents(tokens: int) -> list[Document]:
    rng = np.random.default_rng(0)
    return [Document(rng.integers(3, tokens, n), np.ones(n, bool), row) for row, n in enumerate(LENGTHS)]


def load(folder: Path, way: str, attention: str) -> Any:
    """Return a model loaded as a run loads it: `way` is a dtype or a plugin of the section `load`."""
    plugins = {} if way in ("float32", "bfloat16") else {way: build(find(way, folder).load(), {})}
    return load_model(
        locate(str(folder)), dtype=dtype_of(way), device="cpu", attn_implementation=attention,
        plugins=Plugins({"student.load": plugins}), role="student", section="student.load",
    )  # fmt: skip


def dtype_of(way: str) -> torch.dtype:
    return torch.bfloat16 if way == "bfloat16" else torch.float32


@torch.no_grad()
def measure(folder: Path, way: str, attention: str) -> Loaded | None:
    """Return the results of each layout; None if the model does not support this attention."""
    try:
        module = load(folder, way, attention)
    except NeoplugError as error:
        if "does not support an attention implementation" in str(error):
            return None
        raise
    tokens = len(load_tokenizer(locate(str(folder))))
    autocast = torch.bfloat16 if way == "bfloat16" else None
    model = language_model(module, head_name(module), Vocabulary(tokens), autocast=autocast, longest=max(LENGTHS))
    rows = documents(tokens)
    with model.autocast_context():
        alone = torch.cat([module(torch.from_numpy(row.input_ids)[None]).logits[0, :-1].float() for row in rows])
    cells = {layout: cell(replace(model, layout=layout), rows, alone) for layout in LAYOUTS}
    return Loaded(model.layout, cells, quantised(module))


def quantised(module: Any) -> float:
    """Return the share of a model's matrices, without embeddings and head, that bitsandbytes quantised."""
    layers = [part for part in module.modules() if type(part).__module__.startswith("bitsandbytes")]
    count = sum(layer.in_features * layer.out_features for layer in layers)
    outside = {id(part.weight) for part in (module.get_input_embeddings(), module.get_output_embeddings())}
    outside |= {id(layer.weight) for layer in layers}
    rest = sum(weight.numel() for weight in module.parameters() if weight.ndim > 1 and id(weight) not in outside)
    return count / (count + rest)


def cell(model: LanguageModel, rows: list[Document], alone: torch.Tensor) -> Cell:
    """Return the result of the model's layout; `alone` has the logits of each document alone."""
    refused = isolation_failure(model, max(LENGTHS))
    try:
        logits = model.head(model.hidden(collate(rows)))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError):
        return Cell(None, refused)
    return Cell(float((logits - alone).abs().max() / alone.abs().max()), refused)


def facts(folder: Path, family: str) -> list[str]:
    """Return the family's properties: its head, its windows, and what lora's all-linear covers."""
    config = load_config(locate(str(folder))).get_text_config()
    head = ["tied" if config.tie_word_embeddings else "untied"]
    names = {"final_logit_softcapping": "cap", "logit_scale": "scale", "logits_scaling": "divisor"}
    names |= {"lm_head_multiplier": "multiplier"}
    head += [f"{word} {getattr(config, name)}" for name, word in names.items() if getattr(config, name, None)]
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    some = "some layers" if "full_attention" in kinds else "all layers"
    reached, passed = adapted(folder)
    return [family, ", ".join(head), some if window else "-", ", ".join(reached), passed]


def adapted(folder: Path) -> tuple[list[str], str]:
    """Return the names of the modules that `lora` adapts by default, and what it logs about those it leaves out."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("neoplug")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    model = build(find("lora", folder).load(), {"r": 2}).add_adapter(
        meta_model(load_config(locate(str(folder)))), batches=None, total_steps=1, rng=torch.Generator().manual_seed(0)
    )
    logger.removeHandler(handler)
    names = (name.partition(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name)
    kinds = {name.replace(".base_layer", "").rpartition(".")[2] for name in names}
    return sorted(kinds), "; ".join(line.partition(" ")[2] for line in messages) or "-"


def table(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def layouts_table(found: dict[tuple[str, str, str], Loaded | None], families: list[str]) -> Iterator[str]:
    """Yield the table of float32: each layout under each attention."""
    rows = []
    for family in families:
        cells = [family]
        for attention in ATTENTION:
            loaded = found[family, "float32", attention]
            if loaded is None:
                cells += ["no such attention", *[""] * (len(LAYOUTS) - 1)]
            else:
                cells += [f"{loaded.cells[name]}{' ✓' if name == loaded.layout else ''}" for name in LAYOUTS]
        rows.append(cells)
    yield from table(["family", *(f"{attention}, {name}" for attention in ATTENTION for name in LAYOUTS)], rows)


def loading_table(found: dict[tuple[str, str, str], Loaded | None], families: list[str]) -> Iterator[str]:
    """Yield the table of the other ways to load: a run's layout, and the larger difference of both attentions."""
    ways = sorted({way for _, way, _ in found} - {"float32"}, key=lambda way: (way != "bfloat16", way))
    rows = []
    for family in families:
        row = [family]
        for way in ways:
            loaded = [one for attention in ATTENTION if (one := found[family, way, attention]) is not None]
            row.append(str(max(loaded, key=lambda one: one.cells[one.layout].off or 0)))
        rows.append([*row, f"{loaded[-1].quantised:.0%}"])
    yield from table(["family", *ways, "quantised"], rows)


def reasons(found: dict[tuple[str, str, str], Loaded | None], families: list[str]) -> Iterator[str]:
    """Yield for each family the layouts that a run rejects in float32, with reasons."""
    for family in families:
        loaded = {attention: found[family, "float32", attention] for attention in ATTENTION}
        messages = [f"no {attention}" for attention, one in loaded.items() if one is None]
        one = next(one for one in loaded.values() if one is not None)
        messages += [f"not {name}: {one.cells[name].refused}" for name in LAYOUTS if one.cells[name].refused]
        if messages:
            yield f"- `{family}`: {'; '.join(messages)}"
    yield ""


def page(found: dict[tuple[str, str, str], Loaded | None], described: list[list[str]]) -> str:
    families = [row[0] for row in described]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    head = INTRODUCTION.format(versions=versions, lengths=", ".join(map(str, LENGTHS)), window=WINDOW)
    return "\n".join([
        head, *layouts_table(found, families), REFUSED, *reasons(found, families), LOADING,
        *loading_table(found, families), ADAPTERS,
        *table(["family", "head", "windows", "adapted by lora's all-linear", "left out by it"], described),
        REST,
    ])  # fmt: skip


INTRODUCTION = """# Model families

Layouts of a batch, attention, loading and adapters for each model family, measured on tiny random models
(`neoplug.testing.families`). A command generates this page; it covers text models only.

```bash
python benchmarks/families.py
```

Measured with {versions}, on a CPU. Flash attention needs a GPU and was not measured.

Each run also verifies its own teacher and student before training: the head, applied to hidden states, gives the
model's own logits, and the documents of a batch do not change each other's states. The run takes the first of four
layouts that passes, and logs why it rejects the ones before it:

- **varlen**: one row, `position_ids` that restart with each document, and attention computed inside each document.
  Used on a CPU, where the model calls its attention by name; a GPU starts with flat.
- **flat**: the same row without a mask.
- **block**: the same row with a mask that hides other documents and positions outside a sliding window.
- **padded**: one row per document, padded on the right. Later positions never change earlier ones, so this layout also
  works for hybrid models, whose recurrent state passes from one document of a row to the next.

## Layouts, in float32

Each cell is the largest difference between a document's logits in a batch of three documents ({lengths} tokens) and
its logits alone, relative to the largest logit. Attention windows are {window} tokens, so a mask without them fails.
**leaks**: the verification rejects the layout. ✓: the layout that a run takes.
"""
REFUSED = """### Rejected layouts and reasons
"""
LOADING = """## Loading

The same difference for other ways to load a model, under the layout that a run takes (the larger value of eager and
sdpa). bfloat16 rounds differently in a row and alone; the check that documents do not change each other is exact there
too. Quantised models are compared with themselves, not with the unquantised model. The last column is the share of the
matrices, without embeddings and head, that is quantised: stacked experts, convolutions and learned positions are not.
"""
ADAPTERS = """## Heads and adapters

The chunked head applies everything that a family does to its logits: soft caps, scales, biases. `modules_to_save`
trains heads and embeddings in full, and tied ones stay tied. An adapter on a tied head or on tied embeddings trains
that module only, and export gives each its own weight.
"""
REST = """Experts are stored in one tensor, not in linear layers. peft supports those of Mixtral and Qwen and adapts
them and the router with `lora` (as `target_parameters`). `dora` does not, and refuses all-linear there: set
`target_modules`. Other experts are not adapted, and the log says so. The auxiliary loss of a router is not
part of the objective. A mamba mixer passes the weight of its `out_proj` to a fused kernel without calling
the layer, so no adapter is placed there.

`tests/families` runs plan, run, resume and export for each family, packed with `lora` and padded with
`full`, with a teacher of another family; losses and gradients of the first step equal those of full logits
in float64.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="print two families and store nothing")
    quick = parser.parse_args().quick
    families = list(QUICK if quick else FAMILIES)
    ways = ["float32", "bfloat16", *loaders()]
    found, described = {}, []
    with tempfile.TemporaryDirectory() as root:
        for family in families:
            folder = make(family, Path(root) / family)
            described.append(facts(folder, family))
            for way in ways:
                for attention in ATTENTION:
                    found[family, way, attention] = measure(folder, way, attention)
            print(family, *(found[family, way, "eager"] for way in ways), file=sys.stderr)
    text = page(found, described)
    if quick:
        print(text)
    else:
        PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
