"""What is attacked: tiny models and a recipe, a finished run and one that was killed, with the caches they use."""

import gc
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import yaml
from faults_command import Answer, answer, neoplug

IMPORTED = [
    "neoplug.runs.execute", "neoplug.cli.run", "neoplug.export.hub", "neoplug.export.lora", "neoplug.export.merge",
    "peft", "accelerate", "datasets", "transformers.models.llama.modeling_llama", "tests.runs.test_push_faults",
]  # fmt: skip
CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")


class Result(NamedTuple):
    """The result of a case."""

    outcome: str  # a word for the table
    failure: str = ""  # how the promise was broken, with the case
    seconds: float = 0.0
    megabytes: float = 0.0


@dataclass(frozen=True)
class Lab:
    """A folder that is never changed after it was made; a case works on a copy of its subfolder `state`."""

    folder: Path

    @property
    def recipe(self) -> Path:
        """Return the file of the recipe that all runs use."""
        return self.folder / "recipe.yaml"

    @contextmanager
    def copy(self, *names: str, of: str = "state") -> Iterator[Path]:
        """Yield a new folder with copies of parts of the state: "home", "finished", "killed"; or of another state."""
        with TemporaryDirectory(prefix="case-", dir=self.folder) as case:
            for name in names:
                shutil.copytree(self.folder / of / name, Path(case) / name)
            yield Path(case)

    def command(self, case: Path, *words: object) -> Answer:
        """Return the answer of a command that uses the cache in a case's folder."""
        return answer(in_home(case / "home", neoplug(*words)))


def in_home(home: Path, call: Any) -> Any:
    """Return a call that uses another cache, and no network."""

    def run() -> None:
        os.environ |= {"NEOPLUG_HOME": str(home), "XDG_CONFIG_HOME": str(home / "settings"), "PIP_NO_INDEX": "1"}
        call()

    return run


@contextmanager
def lab() -> Iterator[Lab]:
    """Yield a new lab."""
    for name in IMPORTED:
        import_module(name)
    gc.freeze()  # forks share its pages
    with TemporaryDirectory(prefix="faults-") as folder:
        made = Lab(Path(folder).resolve())
        _expect(answer(lambda: _write_inputs(made.folder)))
        state = made.folder / "state"
        state.mkdir()
        _expect(made.command(state, "run", made.recipe, "--output", state / "finished"))
        yield made


def _expect(answered: Answer) -> None:
    if answered.code:
        raise RuntimeError(answered.err)


def _write_inputs(folder: Path) -> None:
    """Write a student that is pruned, a teacher as GGUF that is converted, rows, and the recipe."""
    from transformers import AutoModelForCausalLM

    from tests.conftest import bpe_tokenizer, tiny_llama
    from tests.models.conftest import write_gguf

    tokenizer = bpe_tokenizer()
    tiny_llama(folder / "student", tokenizer, seed=1, layers=3)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_llama(folder / "teacher", tokenizer, seed=2))
    write_gguf(folder / "teacher.gguf", teacher, tokenizer)
    shutil.rmtree(folder / "teacher")
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} plus {n}?"},
                {"role": "assistant", "content": f"{2 * n}."},
            ]
        }
        for n in range(24)
    ]
    (folder / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe(folder), sort_keys=False))


def recipe(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return the recipe of a lab's runs, with other sections."""
    return {
        "teacher": {"model": str(folder / "teacher.gguf"), "dtype": "float32"},
        "student": {
            "model": str(folder / "student"), "dtype": "float32", "prepare": {"prune_depth": {"layers": [0, 2]}},
        },
        "data": {"source": str(folder / "chat.jsonl"), "max_length": 96, "held_out": 3},
        "adapter": {"lora": {"r": 2}},
        "loss": {"cross_entropy": {}, "forward_kl": {"weight": 2.0}},
        "train": {
            "max_steps": 3, "save_steps": 1, "logging_steps": 1, "learning_rate": 0.01, "warmup_steps": 0,
            "per_device_train_batch_size": 2,
        },
    } | changes  # fmt: skip


def facts(run: Path, *, with_metrics: bool = True) -> dict[str, Any]:
    """Return what two equal runs have in common, bit for bit: metrics without clock, and the adapter's weights."""
    text = (run / "metrics.jsonl").read_text() if with_metrics else ""
    lines = [json.loads(line) for line in text.splitlines()]
    result = json.loads((run / "result.json").read_text())
    return {
        "metrics": [{key: value for key, value in line.items() if key not in CLOCK} for line in lines],
        "status": result["status"],
        "after": result["after"],
        "adapter": digest(run / "adapter" / "adapter_model.safetensors"),
    }


def tree(folder: Path, case: Path | None = None) -> dict[str, str]:
    """Return the hash of each file in a folder; the path of the case's folder does not count."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): digest(file, case) for file in files}


def digest(file: Path, case: Path | None = None) -> str:
    """Return the hash of a file; the path of the case's folder does not count."""
    content = file.read_bytes()
    return hashlib.sha256(content.replace(str(case).encode(), b"CASE") if case else content).hexdigest()
