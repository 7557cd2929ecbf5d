"""The roofline of a training step on an H100, from the operators that neoplug issues: by model, not measured.

    python benchmarks/roofline.py           Llama-3.1-8B to Llama-3.2-1B; writes roofline.json next to this file
    python benchmarks/roofline.py --quick   tiny models; writes nothing

A step runs on fake tensors, which have shapes and no values, on a GPU that a small library pretends where torch has no
CUDA. Each operator takes as long as its products at 70 % of 989 TF/s, or as its bytes at 85 % of 3.35 TB/s, whichever
is longer: no gaps between kernels, no caches, no host. Memory is that of tensors, without what an allocator keeps.

    bare           both backbones with attention by document, LoRA without casts, a constant gradient; no heads
    neoplug        the student, its objective and the optimizer as the training loop calls them
    neoplug fused  the same with the fused kernel of the objective, where Triton is installed

MFU counts the products of `bare` and the three with the heads that an exact objective needs, over all of the step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

TEACHER, STUDENT = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B"
DOCUMENTS, LENGTH, RANK = 4, 2048, 64
TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16, "vocab_size": 512}
PARTS = ("teacher", "student forward", "student backward", "heads", "optimizer")
GIB = 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny models; writes nothing")
    quick = parser.parse_args().quick
    if "torch" in sys.modules:  # as in a process that was forked from one which has it
        raise SystemExit(subprocess.run([sys.executable, __file__, *sys.argv[1:]], check=False).returncode)
    load_pretended_gpu()
    length = 64 if quick else LENGTH
    found = {arm: step(arm, length, quick) for arm in ARMS}
    useful = found["bare"].pop("flops")
    rows = {arm: summary(costs, useful) for arm, costs in found.items()}
    print(table(rows))
    if not quick:
        packages = {name: version(name) for name in ("torch", "transformers", "peft")}
        setting = {"teacher": TEACHER, "student": STUDENT, "documents": DOCUMENTS, "length": length, "r": RANK}
        stored = {
            "command": "python benchmarks/roofline.py",
            **packages,
            **setting,
            "useful_flops": useful,
            "arms": rows,
        }
        (HERE / "roofline.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


def load_pretended_gpu() -> None:
    """Load the library that pretends a GPU, before torch is imported; a build of torch with CUDA needs none."""
    from tests.cuda import library

    torch = find_spec("torch")
    assert torch is not None
    assert torch.origin is not None
    if (Path(torch.origin).parent / "lib" / "libtorch_cuda.so").exists():
        return
    if reason := library.missing():
        raise SystemExit(f"the roofline needs the library of a pretended GPU: {reason}")
    folder = Path(tempfile.gettempdir(), f"neoplug-pretended-{os.getuid()}")
    folder.mkdir(exist_ok=True)
    library.load(library.compiled(folder))


@contextmanager
def pretended(length: int) -> Iterator[None]:
    """Let torch and peft take fake tensors for those of a GPU."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    for package in ("bitsandbytes", "peft", "transformers"):  # they look for a GPU's libraries when they are imported
        import_module(package)
    answers = {
        "torch.cuda.is_available": lambda: True,
        "torch.cuda.is_bf16_supported": lambda *_, **__: True,
        "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
        # The only list that a step makes of a tensor is that of the documents' lengths.
        f"{FakeTensor.__module__}.FakeTensor.tolist": lambda tensor: [length] * tensor.numel(),
    }
    with ExitStack() as stack:
        for target, answer in answers.items():
            stack.enter_context(mock.patch(target, answer))
        torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(..., device="cuda")` is made on the host, then copied
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        yield


def step(arm: str, length: int, quick: bool) -> dict[str, Any]:
    """Return the costs of an arm's second step by part, the peak of its memory, and the useful operations of `bare`."""
    from roofline_counts import Counts
    from torch._subclasses.fake_tensor import FakeTensorMode

    teacher, student = models(quick)
    with pretended(length), FakeTensorMode(allow_non_fake_inputs=True), Counts() as counts:
        teacher, student = placed(teacher), placed(student)
        take = ARMS[arm](counts, teacher, student, length)
        for _ in range(2):  # the optimizer's state is made in the first
            counts.restart()
            take()
        found: dict[str, Any] = {part: counts.cost[part] for part in PARTS} | {"peak": counts.peak}
        if arm == "bare":
            widths = teacher.config.hidden_size + 2 * student.config.hidden_size
            heads = 2 * DOCUMENTS * (length - 1) * widths * teacher.config.vocab_size
            found["flops"] = heads + sum(counts.cost[part].flops for part in PARTS)
        return found


def models(quick: bool) -> tuple[Any, Any]:
    """Return the frozen teacher and the student with its adapter, in bfloat16, the adapter's weights in float32."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from neoplug.models.facts import known_models
    from neoplug.models.varlen_attention import use_varlen
    from neoplug_adapters.lora import LoRA

    found = []
    for name in (TEACHER, STUDENT):
        config = AutoConfig.for_model(**{**known_models()[name].config, **(TINY if quick else {})})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
        assert use_varlen(model)
        found.append(model.requires_grad_(False))
    teacher, student = found
    adapter = LoRA(r=RANK, lora_alpha=2 * RANK, target_modules="all-linear")
    adapted = adapter.add_adapter(student, batches=None, total_steps=1, rng=torch.Generator().manual_seed(0))
    return teacher.eval(), adapted.train()


def placed(model: Any) -> Any:
    """Return a model of the meta device on the GPU; its tied weights are one tensor again."""
    model.to_empty(device="cuda:0")
    getattr(model, "get_base_model", lambda: model)().tie_weights()
    return model


def one_batch(length: int) -> Any:
    """Return a batch of packed documents, all of whose tokens but the first are scored."""
    import torch

    from neoplug.data.batch import Batch

    tokens = DOCUMENTS * length
    scored = torch.cat([torch.arange(length - 1) + at for at in range(0, tokens, length)])
    ids = torch.zeros(tokens, dtype=torch.int64)
    return Batch(ids, [length] * DOCUMENTS, scored, torch.zeros_like(scored), torch.zeros_like(scored))


def bare(counts: Any, teacher: Any, student: Any, length: int) -> Any:
    """Return the step of both backbones without heads."""
    import torch

    for module in student.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False
    inputs, _ = one_batch(length).to("cuda:0").layout("varlen")
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]

    def take() -> None:
        with counts.of("teacher"), torch.no_grad():
            teacher.model(**inputs)
        with counts.of("student forward"), torch.autocast("cuda", torch.bfloat16):
            hidden = student.base_model.model.model(**inputs).last_hidden_state
        with counts.of("student backward"):
            hidden.backward(torch.empty_like(hidden))
        for parameter in trained:
            parameter.grad = None

    return take


def neoplug(counts: Any, teacher: Any, student: Any, length: int, fused: bool = False) -> Any:
    """Return the step as the training loop (`neoplug.training.loop.distil`) makes it, with the fused kernel or not."""
    import torch

    from neoplug.models.head import Head
    from neoplug.models.language_model import LanguageModel
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.registry import Plugins
    from neoplug.runs.steps import make_losses
    from neoplug.teachers.live import LiveTeacher
    from neoplug.training.formula import formula_of
    from neoplug.training.module import StudentWithObjective
    from neoplug.training.optim import make_optimizer
    from neoplug_losses.cross_entropy import CrossEntropy
    from neoplug_losses.forward_kl import ForwardKL
    from neoplug_optimizers.adamw import AdamW

    device, vocabulary = torch.device("cuda:0"), Vocabulary(teacher.config.vocab_size)

    def split(module: Any, inside: Any, autocast: Any = None) -> LanguageModel:
        return LanguageModel(module, Head(inside.lm_head, vocabulary), device, "varlen", autocast=autocast)

    theirs = LiveTeacher(split(teacher, teacher))
    module = StudentWithObjective(split(student, student.base_model.model, torch.bfloat16), {})
    plugins = Plugins(
        {"loss": {"cross_entropy": CrossEntropy(), "forward_kl": ForwardKL()}, "optimizer": {"adamw": AdamW()}}
    )
    losses = make_losses(plugins)
    if fused:
        losses = [replace(loss, formula=formula_of(plugins.section("loss")[loss.name])) for loss in losses]
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(student, plugins, 1e-4)
    batch = one_batch(length)

    def take() -> None:
        with counts.of("teacher"):
            signal = theirs.signal(batch)
        placed = batch.to(device)
        with counts.of("student forward"):
            hidden = module.student.hidden(placed)
        with counts.of("heads"), kernel_counted(counts):
            total, _ = module.score(losses, hidden, placed, signal, 0.0)
        del signal
        with counts.of("student backward"):
            total.backward()
        with counts.of("optimizer"):
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return take


@contextmanager
def kernel_counted(counts: Any) -> Iterator[None]:
    """Let a stand-in of the fused kernel count its five passes: it reads both logits twice, and writes the gradient."""

    def fused_tile(formulas: Any, logits: Any, teacher: Any, labels: Any, weights: Any) -> Any:
        counts.cost["heads"].add(0.0, 5 * logits.numel() * logits.element_size())
        return logits.new_empty(len(formulas), len(logits))

    with mock.patch.dict(sys.modules, {"neoplug.training.fused_tile": SimpleNamespace(fused_tile=fused_tile)}):
        yield


ARMS = {"bare": bare, "neoplug": neoplug, "neoplug fused": partial(neoplug, fused=True)}


def summary(costs: dict[str, Any], useful: float) -> dict[str, Any]:
    """Return milliseconds of each part and of the step, MFU, peak in GiB, and kernels."""
    from roofline_counts import FLOPS

    seconds = {part: costs[part].seconds for part in PARTS}
    whole = sum(seconds.values())
    parts = {f"{part}, ms": 1e3 * value for part, value in seconds.items()}
    counted = {"kernels": sum(costs[part].kernels for part in PARTS), "peak, GiB": costs["peak"] / GIB}
    return {**parts, "step, ms": 1e3 * whole, "mfu": useful / FLOPS / whole, **counted}


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Return the table of the documentation."""
    lines = [
        "| by model, not measured; ms | teacher | student | heads | step | / bare | MFU | peak, GiB |",
        "|---|" + "---|" * 7,
    ]
    for arm, row in rows.items():
        parts = [f"{row[part + ', ms']:.0f}" for part in PARTS]
        cells = [arm, parts[0], f"{parts[1]} + {parts[2]}", parts[3], f"{row['step, ms']:.0f}"]
        cells += [f"{row['step, ms'] / rows['bare']['step, ms']:.2f}", f"{row['mfu']:.1%}", f"{row['peak, GiB']:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
