"""The batch sampler: the rows of each micro-batch of each step on each rank.

A new permutation each epoch, drawn from Philox keyed by (seed, epoch). The rows of a step depend only on the seed and
on the number of rows in a step, not on how they are distributed over ranks and micro-batches. Where rows are padded,
those of a step are distributed by length, the longest first, so that the rows of a micro-batch, and of micro-batches
that the ranks run at the same time, have nearly equal lengths.
"""

from dataclasses import dataclass, field

import numpy as np

from neoplug.data.mixture import Mixture, permutation


@dataclass(frozen=True, eq=False)
class BatchSampler:
    """Computes the row numbers of any step, independently of the steps before it.

    rows          number of rows in an epoch
    batch_size    maximum number of rows in a micro-batch of one rank
    accumulation  maximum number of micro-batches in a step of one rank
    world         number of ranks
    lengths       tokens of each row; given where a step's rows are to be distributed by length
    mixture       selects the rows of an epoch; None: all of them
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
        """Return the number of steps in an epoch; the last may have fewer rows."""
        return -(-self.rows // self.rows_per_step)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the row numbers of each micro-batch that `rank` runs in `step`, which counts from 0 over all epochs.

        All ranks get the same number of micro-batches; a rank without rows left gets empty ones.
        """
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.mixture.epoch(self.seed, epoch) if self.mixture else permutation(self.rows, self.seed, epoch)
        rows = order[within * self.rows_per_step :][: self.rows_per_step]
        if self.lengths is not None:
            rows = rows[np.argsort(-self.lengths[rows], kind="stable")]
        at_once = self.batch_size * self.world
        return [rows[start : start + at_once][rank :: self.world].tolist() for start in range(0, len(rows), at_once)]
