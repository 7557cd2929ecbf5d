"""The core names no plugin: facts about one variant are in the file of that variant."""

import ast
import inspect
import re
from importlib.metadata import entry_points

import pytest

from neoplug.registry import SPECS

READS = {  # modules that name what is read of the teacher
    **{f"neoplug/{name}.py": {"full"} for name in ("answers/signals", "runs/cache_folder", "training/divergence")},
    **{
        f"neoplug/{name}.py": {"full", "linear"}
        for name in (
            "hookspecs/markers",
            "recipe/cache_checks",
            "registry/teacher_reads",
            "testing/caches",
            "testing/sparse",
        )
    },
    "neoplug/testing/conformance.py": {"linear"},
}
METRICS = {"cross_entropy", "forward_kl", "reverse_kl", "jsd"}  # as metrics of evaluation, not as losses
TRACKERS = {"mlflow", "tensorboard", "trackio", "wandb"}
ALLOWED = {
    **READS,
    "neoplug/cli/export.py": {"lora"},  # the name of its option and of llama.cpp's
    "neoplug/evaluation/evaluate.py": METRICS,  # computes them
    "neoplug/evaluation/remarks.py": {"cross_entropy", "forward_kl"},  # explains them
    "neoplug/registry/measures.py": METRICS | {"cosine"},  # lists them; a unit
    "neoplug/export/peft_files.py": {"lora"},  # in the name of vLLM's option
    "neoplug/export/gguf_lora.py": {"lora"},  # a value in llama.cpp's files
    "neoplug/testing/four_bits.py": {"nf4"},  # how a recipe names 4 bits
    "neoplug/testing/loading.py": {"lora"},  # the adapter that the kit trains
    "neoplug/runs/fake_step.py": {"full"},  # what is read of a teacher
    "neoplug/teachers/cached.py": {"linear", "sampled"},  # what is read of a teacher; what metrics say of a signal
    "neoplug/models/stored_adapter.py": {"eva"},  # a value in peft's files
    "neoplug/recipe/schema.py": {"adamw", *TRACKERS},  # the default optimizer; what `report_to` may name
    "neoplug/recipe/train.py": {"full"},  # a value of `train.shard`
    **{  # a value of `train.shard`
        f"neoplug/{name}.py": {"full"} for name in ("distributed/sharding", "runs/sharding", "runs/sharded_memory")
    },
    "neoplug/runs/directory.py": {"mlflow", "tensorboard", "wandb"},  # folders that these write
    "neoplug/recipe/shorthands.py": {"cosine", "early_stopping"},  # the default schedule; what a key names
    "neoplug/recipe/loss_weights.py": {"constant", "cosine", "linear"},  # of the weight of a loss
    "neoplug/studies/report/figures/curves.py": {"linear"},  # of an axis
    # What the keys of other projects are called here:
    "neoplug/recipe/imports/arguments.py": {
        "adafactor",
        "adamw",
        "adamw_8bit",
        *("constant", "constant_with_warmup", "cosine", "inverse_sqrt", "linear"),
        "paged_adamw_8bit",
        "sgd",
        "int8",
        "nf4",
    },
    "neoplug/recipe/imports/llama_factory.py": {
        *("cross_entropy", "dora", "forward_kl", "full", "lora", "loraplus", "nf4", "pissa"),
    },
    "neoplug/recipe/imports/trl.py": {"cross_entropy", "forward_kl", "jsd", "lora", "reverse_kl"},
}
# Also English words: found only where the whole literal is the name.
ENGLISH = {"constant", "cosine", "full", "linear", "position", "sampled", "states", "stored"}

ARGUMENTS = {name for spec in SPECS.values() for name in inspect.signature(spec).parameters}  # of hooks


@pytest.fixture(scope="module")
def built_ins():
    names = {point.name for point in entry_points(group="neoplug") if point.dist.name == "neoplug"}
    assert {"lora", "forward_kl", "adamw"} <= names
    return names


def docstrings(tree):
    """Return the nodes that are docstrings: these may give an example."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield first.value


def literals(tree):
    """Yield line and text of each string that is no docstring, pieces of f-strings too."""
    left_out = set(docstrings(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
            yield node.lineno, node.value


def named(text, names):
    """Return those of `names` that a literal names."""
    return {
        name
        for name in names
        if text == name or (name not in ENGLISH and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text))
    }


def test_the_search_finds_a_name():
    tree = ast.parse('"""lora"""\nif adapter == "full" or f"{x} (dora)": a = "a full stop"')
    assert [named(text, {"lora", "dora", "full"}) for _, text in literals(tree)].count(set()) == 1
    assert set().union(*(named(text, {"lora", "dora", "full"}) for _, text in literals(tree))) == {"dora", "full"}


def test_the_core_names_no_plugin(core, built_ins):
    found = [
        f"{source.name}:{line}: {name}"
        for source in core
        for line, text in literals(source.tree)
        for name in named(text, built_ins) - ALLOWED.get(source.name, set()) - ARGUMENTS
    ]
    assert not found


def test_no_function_or_class_of_the_core_has_the_name_of_a_plugin(core, built_ins):
    parts = ast.FunctionDef | ast.ClassDef
    found = [
        f"{source.name}:{node.lineno}: {node.name}"
        for source in core
        for node in ast.walk(source.tree)
        if isinstance(node, parts) and node.name.lower() in built_ins - ENGLISH
    ]
    assert not found


def test_every_allowed_name_is_needed(core, built_ins):
    texts = {source.name: [text for _, text in literals(source.tree)] for source in core}
    for name, allowed in ALLOWED.items():
        assert set().union(*(named(text, built_ins) for text in texts[name])) - ARGUMENTS == allowed
