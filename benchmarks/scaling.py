"""Memory of one rank by layout: the formula of docs/scaling.md for models of known shapes. Nothing is measured.

    python benchmarks/scaling.py

prints the table of the page. GB are 10^9 bytes.
"""

from dataclasses import dataclass

BF16, FLOAT32 = 2, 4
ADAM = 4 * FLOAT32  # a trained weight, its gradient and the two moments
BLOCK = 2**24  # elements of a block of logits
HIDDEN, MLP = 9, 4  # numbers of a layer that backward needs, per token: of its hidden size and of its MLP's


@dataclass(frozen=True)
class Model:
    """The shape of a model: weights of its layers and outside them."""

    vocabulary: int
    hidden: int
    mlp: int
    layers: int
    keys: int
    tied: bool

    @property
    def layer(self) -> int:
        """Weights of a layer: queries, keys, values, output, the three matrices of the MLP and two norms."""
        return 2 * self.hidden**2 + 2 * self.hidden * self.keys + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def outside(self) -> int:
        """Weights of embedding, head and norm."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden + self.hidden

    @property
    def total(self) -> int:
        """All weights."""
        return self.layers * self.layer + self.outside


# The shapes of Llama 3.2 1B, 3.1 8B and 3.1 70B, by their configurations.
MODELS = {
    "1B": Model(128_256, 2048, 8192, 16, 512, tied=True),
    "8B": Model(128_256, 4096, 14_336, 32, 1024, tied=False),
    "70B": Model(128_256, 8192, 28_672, 80, 1024, tied=False),
}


def lora(student: Model, rank: int) -> int:
    """Return the weights of LoRA on all linear layers."""
    hidden, mlp, keys = student.hidden, student.mlp, student.keys
    return student.layers * rank * (4 * hidden + 2 * (hidden + keys) + 3 * (hidden + mlp))


def at_start(teacher: Model | None, student: Model, ranks: int, shard: str, rank: int | None) -> float:
    """Return the bytes of the main rank before the student is sharded: it is whole, and so is a copy that is tried."""
    parts = ranks if shard != "none" else 1
    of_teacher = BF16 * (teacher.outside + teacher.layers * teacher.layer / parts) if teacher else 0.0
    if rank is None:
        return of_teacher + FLOAT32 * student.total
    return of_teacher + 2 * BF16 * student.total + 3 * FLOAT32 * lora(student, rank)


def in_training(teacher: Model | None, student: Model, ranks: int, shard: str, rank: int | None, tokens: int) -> float:
    """Return the bytes of one rank in training.

    teacher  None: its output is stored, and of the model only the head is in memory: as of the student here
    rank     of LoRA; None: all weights of the student are trained
    tokens   of a micro-batch, with gradient checkpointing
    """
    parts = ranks if shard != "none" else 1
    needed, gathered = 2.0 * FLOAT32 * BLOCK, [0.0]
    if teacher is not None:
        needed += BF16 * (teacher.outside + teacher.layers * teacher.layer / parts)
        gathered.append(2.0 * BF16 * teacher.layer)
    else:
        needed += BF16 * student.vocabulary * student.hidden
    if shard == "none" and ranks > 1:  # torch's data parallelism sums gradients in buckets of its own
        needed += FLOAT32 * (student.total if rank is None else lora(student, rank))
    if rank is None:
        needed += ADAM * student.total / (ranks if shard == "full" else 1)
        gathered.append(FLOAT32 * (2.0 * student.outside + 3.0 * student.layer))
    else:
        needed += BF16 * (student.outside + student.layers * student.layer / parts) + ADAM * lora(student, rank)
        gathered.append(2.0 * BF16 * student.layer)
    kept = student.layers * student.hidden + HIDDEN * student.hidden + MLP * student.mlp
    return needed + (max(gathered) if shard != "none" else 0.0) + BF16 * tokens * kept


# GPUs, teacher, student, LoRA's rank, shard
LAYOUTS: list[tuple[str, int, str | None, str, int | None, str]] = [
    ("1", 1, "8B", "1B", 64, "none"),
    ("1, teacher stored", 1, None, "8B", 64, "none"),
    ("2", 2, "8B", "1B", None, "none"),
    ("4", 4, "70B", "1B", 64, "base"),
    ("4", 4, "70B", "8B", 64, "base"),
    ("8", 8, "70B", "8B", 64, "base"),
    ("8", 8, "70B", "8B", None, "full"),
    ("8, teacher stored", 8, None, "8B", None, "full"),
    ("2 x 8", 16, "70B", "8B", None, "full"),
    ("8 x 8", 64, "70B", "8B", 64, "base"),
    ("8 x 8", 64, "70B", "8B", None, "full"),
]


def main() -> None:
    """Print the table of layouts, by model, not measured."""
    print("| GPUs | teacher | student | trained | `shard` | GB at the start | GB in training |")
    print("|---|---|---|---|---|---|---|")
    for gpus, ranks, teacher, student, rank, shard in LAYOUTS:
        layout = (MODELS[teacher] if teacher else None, MODELS[student], ranks, shard, rank)
        trained = "all weights" if rank is None else f"LoRA, r {rank}"
        sizes = f"{at_start(*layout) / 1e9:.0f} | {in_training(*layout, tokens=8192) / 1e9:.0f}"
        print(f"| {gpus} | {teacher or '(stored)'} | {student} | {trained} | {shard} | {sizes} |")


if __name__ == "__main__":
    main()
