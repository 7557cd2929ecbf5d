"""One adapter of `adapters.py` in a separate process, which takes a training step on each request."""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
from step_arms import ENDLESS, RESET, release, resident

from neoplug import recipe
from neoplug.data import Corpus
from neoplug.distributed.world import World
from neoplug.environment.memory import keep_freed
from neoplug.models.quiet import quiet
from neoplug.models.verify import head_name
from neoplug.recipe import ResolvedRecipe
from neoplug.runs.artifacts import save_student
from neoplug.runs.directory import RunDir
from neoplug.runs.inputs import RunInputs, prepare_student, resolve_inputs
from neoplug.runs.progress import Silent
from neoplug.runs.signals import Stop
from neoplug.runs.trainer import Trainer
from neoplug.training.loop import distil
from neoplug.training.metrics import Metrics
from neoplug.training.optim import make_optimizer, make_schedule

LENGTH = 256  # tokens per row
STEPS = 8  # length of the run, for adapters with a schedule; the process itself takes as many steps as are requested


def work(name: str, changes: dict[str, Any], line: Connection) -> None:
    """Send the cost of initialisation; take a step for each True and send its cost; after a False, send {disk_bytes}.

    changes  changes to the recipe
    """
    keep_freed()  # as `neoplug run` does
    with tempfile.TemporaryDirectory() as folder, quiet():
        checked = recipe.load("llm_neo_tiny", changes=recipe_changes(name, changes))
        inputs = prepare_student(checked, resolve_inputs(checked, Silent()), Silent())
        directory = RunDir(Path(folder))
        train(Trainer(checked, inputs, directory, World("cpu"), Silent(), Stop()), line)


def recipe_changes(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes to the recipe: this adapter without options, no teacher, no metrics."""
    train = {"max_steps": STEPS, "logging_steps": ENDLESS, "save_steps": ENDLESS}
    alone = {"teacher": None, "loss": {"cross_entropy": {}}, "adapter": {name: {}}, "train": train}
    return alone | changes


def train(session: Trainer, line: Connection) -> None:
    """Train as a run does, while steps are requested; then save."""
    base = in_memory(session.loader.load("student", session.inputs.base))
    name, turns = head_name(base), Turns(line, resident("VmRSS"))
    started = perf_counter()
    module, _ = session.add_adapter(base, STEPS)
    trained = sum(each.numel() for each in module.parameters() if each.requires_grad)
    line.send({"begin_seconds": perf_counter() - started, "parameters": trained})
    student, checked = session.loader.verify_student(module, name), session.checked
    optimizer = make_optimizer(module, checked.plugins, checked.recipe.train.learning_rate)
    schedule = make_schedule(optimizer, checked.plugins, checked.recipe.train, STEPS)
    config = session.loop_config(student, None, FullRows(session.inputs.corpus), ENDLESS, optimizer, schedule)
    metrics = Metrics(weights_vary=False, write=lambda lines: None)
    events = replace(
        session.loop_events(config, []), metrics=metrics, save=lambda step: None, ends_early=lambda step: False,
        stop_requested=turns,
    )  # fmt: skip
    turns.wait()
    distil(config, events)
    line.send({"disk_bytes": save(module, checked, session.inputs, session.directory)})


def in_memory(model: Any) -> Any:
    """Copy the weights of a model into memory, where they may be mapped from a file."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    return model


@dataclass
class Turns:
    """Waits for a request before each step and sends its cost afterwards; `loaded` bytes were resident before."""

    line: Connection
    loaded: int

    def __call__(self) -> bool:
        """End a step and begin the next; return whether training is to stop. The loop calls it after each step."""
        cost = {"seconds": perf_counter() - self.started, "cpu_seconds": process_time() - self.cpu}
        self.line.send(cost | {"peak_bytes": resident("VmHWM") - self.loaded})
        release()
        return not self.wait()

    def wait(self) -> bool:
        """Wait for a request; start the measurement of a step; return whether one is requested."""
        requested = bool(self.line.recv())
        release()
        RESET.write_text("5")  # the peak is reset
        self.started, self.cpu = perf_counter(), process_time()
        return requested


class FullRows:
    """A sampler of one row per step, among the rows that are one document of the maximal length."""

    steps_per_epoch = 1  # no teacher is read from a cache, which may have another sample for each epoch

    def __init__(self, corpus: Corpus) -> None:
        full = [number for number, length in enumerate(corpus.row_lengths) if length == LENGTH]
        self.rows = [number for number in full if len(corpus.rows[number]) == 1]

    def micro_batches(self, step: int, rank: int) -> Iterator[list[int]]:
        """Yield the row of a step."""
        yield [self.rows[step % len(self.rows)]]


def save(module: nn.Module, checked: ResolvedRecipe, inputs: RunInputs, directory: RunDir) -> int:
    """Save as a run does, but without the base; return the bytes of the weights."""
    save_student(module, checked, replace(inputs.base, kind="local"), inputs.tokenizer, directory)
    folders = (directory.adapter, directory.model)
    return sum(file.stat().st_size for folder in folders for file in folder.glob("*.safetensors"))
