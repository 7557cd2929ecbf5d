"""The memory of a run in its plan: of a step on shapes, or by a formula from the sizes of its models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from neoplug.environment.memory import IMPORTS
from neoplug.runs.fake_step import CannotForetellError, Foretold, foretell
from neoplug.runs.sharded_memory import LayersShare, per_rank
from neoplug.runs.sharding import number_of_processes
from neoplug.runs.skeletons import FLOAT32
from neoplug.training.objective import block_rows

if TYPE_CHECKING:
    from neoplug.data import Corpus
    from neoplug.hookspecs import Role
    from neoplug.models.reference import ResolvedModel
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import ResolvedRecipe, Train
    from neoplug.runs.skeletons import Sizes, Skeleton


AT_A_TIME = 2  # micro-batches of a stored teacher's output: one in use, the next read in a thread
# Numbers that a layer keeps for backward, per token: of its hidden size and of its MLP's (counted on Llama by
# autograd's saved tensors; no attention matrix, which sdpa recomputes). Checkpointing keeps a layer's input.
KEPT_HIDDEN, KEPT_MLP = 9, 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a run.

    parts      of its tensors, by part, and their total: the most that there are at a time
    on_device  of those on the student's device
    in_main    of those in main memory
    """

    parts: dict[str, int]
    on_device: int
    in_main: int

    @property
    def resident(self) -> dict[str, int]:
        """The resident memory of the process: its tensors in main memory, and what it imports."""
        return {"tensors": self.in_main, "imports": IMPORTS, "total": self.in_main + IMPORTS}


def quick_memory(
    checked: ResolvedRecipe, skeletons: Mapping[Role, Skeleton], sizes: Sizes, longest_row: int, stored: int = 0,
    shares: Mapping[Role, LayersShare] | None = None,
) -> Memory:  # fmt: skip
    """Return the memory of one rank by the formula.

    longest_row  tokens
    stored       bytes of a stored teacher's output
    shares       of the models that are sharded
    """
    student = skeletons["student"]
    parts = {f"{role}_weights": model.bytes for role, model in skeletons.items()}
    if sizes.whole:  # the weights themselves are the trainable ones
        del parts["student_weights"]
    trainable, gradients = sizes.trainable * FLOAT32, _measured_gradients(checked)
    training = {
        **({"average_weights": trainable} if checked.recipe.taught_by == "ema" else {}),
        "gradients": trainable,
        **({"gradient_buckets": trainable} if number_of_processes() > 1 and not shares else {}),
        **({"measured_gradients": gradients * trainable} if gradients else {}),
        "optimizer": sizes.optimizer,
        "activations": _activations(student, checked.recipe.train, longest_row),
    }
    parts |= {"trainable_weights": trainable, **training}
    # The copy of the student that a saved adapter is tried on, with the original trainable weights, precedes training.
    copied = 0 if sizes.whole else parts["student_weights"] + 2 * trainable
    parts["at_start"] = max(0, copied - sum(training.values()))
    parts["total"] = sum(parts.values())
    if shares:
        parts = per_rank(parts, shares, sizes.whole, checked.recipe.train.shard)
    if stored:
        add_part(parts, "teacher_output", stored)
    elsewhere = sum(
        parts.get(f"{role}_weights", 0) for role, model in skeletons.items() if model.device != student.device
    )
    on_device = parts["total"] - elsewhere
    teacher_in_main = elsewhere if any(model.device == "cpu" for model in skeletons.values()) else 0
    return Memory(parts, on_device, parts["total"] if student.device == "cpu" else teacher_in_main)


def foretold_memory(
    estimate: Memory, checked: ResolvedRecipe, models: Mapping[Role, ResolvedModel], vocabulary: Vocabulary,
    corpus: Corpus,
) -> tuple[Memory, list[str]]:  # fmt: skip
    """Return the memory of a step on shapes; where there can be none, the estimate, and a line that says why."""
    try:
        found = foretell(checked, models, vocabulary, corpus)
    except CannotForetellError as error:
        return estimate, [f"memory is estimated by a formula, since the step cannot be run on shapes: {error}"]
    return _by_part(found, estimate), []


def _by_part(found: Foretold, estimate: Memory) -> Memory:
    """Return the parts of a step's peak; what is not counted by itself is "activations".

    estimate  names the parts that the run has
    """
    present = estimate.parts
    parts = {
        "teacher_weights": found.teacher,
        "student_weights": found.frozen,
        "trainable_weights": found.trainable,
        "average_weights": found.average,
        "gradients": found.trainable,
        "gradient_buckets": found.trainable,
        "optimizer": found.optimizer,
    }
    parts = {name: size for name, size in parts.items() if name in present}
    rest = found.peak - sum(parts.values())
    for name in ("gathered_weights", "measured_gradients", "teacher_output"):
        if name in present:
            parts[name] = max(0, min(present[name], rest))
            rest -= parts[name]
    parts["activations"] = rest
    more = parts["at_start"] = max(0, found.at_start - found.peak)
    by_device = {device: size + more for device, size in found.on_device.items()}
    parts["total"] = sum(parts.values())
    return Memory(
        parts, by_device.get(found.device, 0), found.on_device.get("cpu", 0) + (more if found.device == "cpu" else 0)
    )


def add_part(parts: dict[str, int], name: str, size: int) -> None:
    """Add a part to sizes in bytes that end with their total."""
    total = parts.pop("total")
    parts |= {name: size, "total": total + size}


def longest_batch(train: Train, corpus: Corpus) -> int:
    """Return the tokens of the largest micro-batch, where all its rows are the longest."""
    return int(corpus.row_lengths.max()) * train.micro_batch


def _activations(student: Skeleton, train: Train, longest_row: int) -> int:
    """Return the bytes that one micro-batch keeps for backward, and a chunk of logits: a rough estimate."""
    text = student.config.get_text_config()
    tokens, hidden, layers = longest_row * train.micro_batch, text.hidden_size, text.num_hidden_layers
    layer = KEPT_HIDDEN * hidden + KEPT_MLP * (getattr(text, "intermediate_size", None) or 4 * hidden)
    numbers = layers * hidden + layer if train.gradient_checkpointing else layers * layer
    # A block of the teacher's logits and one of the student's, which their gradient overwrites.
    rows = min(tokens, block_rows(text.vocab_size, torch.device(student.device)))
    logits = rows * text.vocab_size * FLOAT32 * 2
    return int(tokens * numbers * student.dtype.itemsize + logits)


def _measured_gradients(checked: ResolvedRecipe) -> int:
    """Return of how many losses a run holds a separate gradient to measure its norm; 0 if it measures none."""
    calibrates = any(weight.calibrate for weight in checked.weights.values())
    if not (calibrates or checked.recipe.train.log_gradient_norms):
        return 0
    return len(checked.weights) + len(checked.references.implements("token_loss"))
