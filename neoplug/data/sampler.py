"""In which order rows are trained on, and which of them each rank runs in each step.

A new permutation each epoch, drawn from Philox keyed by (seed, epoch). What a step trains on depends only on the seed
and on how many rows a step has, not on how they are spread over ranks and micro-batches. Where rows are to be padded,
those of a step are dealt out by length, the longest first: the rows of a micro-batch, and those that ranks run beside
each other, are then nearly equally long.
"""

from dataclasses import dataclass, field

import numpy as np

from neoplug.data.mixture import Mixture, permutation


@dataclass(frozen=True, eq=False)
class BatchSampler:
    """The rows of every step.

    rows          how many an epoch has
    batch_size    rows of one micro-batch on one rank, at most
    accumulation  micro-batches of one step on one rank, at most
    world         ranks
    lengths       the tokens of each row, where they are to be dealt out by length
    mixture       which rows an epoch has; None: all of them
    """

    rows: int
    batch_size: int
    accumulation: int
    world: int
    seed: int
    lengths: np.ndarray | None = field(default=None, repr=False)
    mixture: Mixture | None = None
    rows_per_step: int = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if min(self.rows, self.batch_size, self.accumulation, self.world) < 1:
            raise ValueError(f"a sampler needs at least one of each: {self}")
        object.__setattr__(self, "rows_per_step", self.batch_size * self.accumulation * self.world)

    @property
    def steps_per_epoch(self) -> int:
        """Count the steps of an epoch; the last may be smaller."""
        return -(-self.rows // self.rows_per_step)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the row numbers of each micro-batch that `rank` runs in `step`, which counts from 0 over all epochs.

        All ranks get equally many micro-batches; one that has no rows left gets empty ones.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.mixture.epoch(self.seed, epoch) if self.mixture else permutation(self.rows, self.seed, epoch)
        rows = order[within * self.rows_per_step :][: self.rows_per_step]
        if self.lengths is not None:
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        at_once = self.batch_size * self.world
        return [rows[start : start + at_once][rank :: self.world].tolist() for start in range(0, len(rows), at_once)]
