"""Simulated studies with known truth: how often intervals contain it, and how often a family has a false finding.

    python benchmarks/studies.py               10,000 studies of each scenario; hours, resumed where it was stopped;
                                               writes studies.json
    python benchmarks/studies.py --only NAME   one scenario, such as `normal`; may be given several times
    python benchmarks/studies.py --quick       a few studies of each scenario; writes nothing

A study of scores has a control and k arms at n seeds: score = seed + truth of the arm + noise. The noise has the
standard deviation 1, unless the scenario says otherwise. `neoplug.studies.statistics` analyses each study twice: where
no arm differs from the control, and where each differs by the smallest detectable difference, which is also the margin,
so that an equivalence is never true, and most easily found. A study of documents has two arms, n seeds and m documents;
longer documents have a larger difference.

`python benchmarks/studies_page.py` writes the figure and the table of the docs.
"""

import argparse
import gc
import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from neoplug.files import write_atomically
from neoplug.registry.measures import MEASURES
from neoplug.studies.statistics import ALPHA
from neoplug.studies.statistics.crossed import crossed, document_values
from neoplug.studies.statistics.linear_model import block_model
from neoplug.studies.statistics.paired import Comparison, Pairs, compare, detectable_effect

FILE = Path(__file__).with_suffix(".json")
STUDIES, QUICK = 10_000, 20  # of each scenario
BLOCK = 100  # studies with one random stream, between two writes of the file
RESAMPLES = 1_000  # of the bootstrap
LENGTHS = (4.0, 0.7)  # mean and standard deviation of the logarithm of a document's tokens
SLOPE = 0.3  # increase of a document's difference with the logarithm of its tokens
Noise = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]  # of mean 0 and variance 1


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.normal(size=shape)


def heavy(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees of freedom."""
    return rng.standard_t(3, size=shape) / np.sqrt(3)


def skewed(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Exponential: some runs are far worse than the others."""
    return rng.exponential(size=shape) - 1


@dataclass(frozen=True)
class Scores:
    """A scenario of scores.

    control  standard deviation of the control's noise
    spread   those of the arms range from 1/spread to spread
    missing  share of the runs that fail: those with the highest noise if `worst`, else any
    """

    title: str
    seeds: int = 5
    comparisons: int = 7
    noise: Noise = normal
    control: float = 1.0
    spread: float = 1.0
    missing: float = 0.0
    worst: bool = False

    def study(self, rng: np.random.Generator) -> Counter[str]:
        """Simulate a study; count its intervals and findings, true and false ones."""
        n, k = self.seeds, self.comparisons
        sds = np.array([self.control, *np.geomspace(1 / self.spread, self.spread, k)])
        noise = self.noise(rng, (n, k + 1))
        failed = noise > stats.norm.isf(self.missing) if self.worst else rng.random(noise.shape) < self.missing
        scores = np.where(failed, np.nan, noise * sds + rng.normal(size=(n, 1)))
        least = detectable_effect(n, k) * np.hypot(sds[1:], self.control)
        truth = least * np.resize([1, -1], k)
        same, different = self._family(scores, least), self._family(scores + np.array([0, *truth]), least)
        intervals = [line.interval for line in same if line.interval is not None]
        found = Counter(
            studies=1,
            intervals=len(intervals),
            covered=sum(covers(interval) for interval in intervals),
            all_covered=all(covers(line.interval_adjusted) for line in same if line.interval_adjusted is not None),
            false_difference=any(line.sign for line in same),
            false_equivalence=any(line.equivalent for line in different),
            detected=sum(line.p is not None and line.p <= ALPHA / k for line in different),
        )
        return found + self._alternatives(scores, rng)

    def _family(self, scores: np.ndarray, margins: np.ndarray) -> list[Comparison]:
        return compare([Pairs(*self._paired(scores, arm), margin) for arm, margin in enumerate(margins, start=1)])

    def _paired(self, scores: np.ndarray, arm: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores of an arm and of the control at the seeds that both have."""
        both = ~np.isnan(scores[:, [0, arm]]).any(1)
        return scores[both, arm], scores[both, 0]

    def _alternatives(self, scores: np.ndarray, rng: np.random.Generator) -> Counter[str]:
        """Count what the linear model and a percentile bootstrap of the seeds say of the first arm."""
        seeds, arms = np.nonzero(~np.isnan(scores))
        model = block_model(scores[seeds, arms], list(arms), list(seeds))
        arm, control = self._paired(scores, 1)
        found: Counter[str] = Counter()
        if len(arm) and model is not None and model.arms is not None:
            found["models"] = 1
            found["pooled_covered"] = covers(model.difference(1, 0).interval)
            found["false_f"] = model.arms.p <= ALPHA
        differences = arm - control
        if len(differences) > 1:
            resampled = rng.choice(differences, (RESAMPLES, len(differences))).mean(1)
            found["bootstrap"] = 1
            found["bootstrap_covered"] = covers(np.quantile(resampled, [ALPHA / 2, 1 - ALPHA / 2]))
        return found


@dataclass(frozen=True)
class Documents:
    """A scenario of documents: the standard deviation is `seed_sd` over seeds, 1 over documents, and 1 for the rest."""

    title: str
    seeds: int = 5
    documents: int = 100
    seed_sd: float = 0.2
    noise: Noise = normal

    def study(self, rng: np.random.Generator) -> Counter[str]:
        """Simulate a study; count which intervals contain the difference over all seeds and documents."""
        n, m = self.seeds, self.documents
        log_tokens = rng.normal(*LENGTHS, size=m)
        noise = self.seed_sd * rng.normal(size=(n, 1)) + self.noise(rng, (1, m)) + rng.normal(size=(n, m))
        tokens = np.tile(np.exp(log_tokens), (2 * n, 1))
        per_token = np.concatenate([3 + SLOPE * (log_tokens - LENGTHS[0]) + noise, np.full((n, m), 3.0)])
        values = document_values(MEASURES["cross_entropy"], {"cross_entropy": tokens * per_token}, tokens)
        differences = values[:n] - values[n:]
        truth = SLOPE * LENGTHS[1] ** 2  # a token is in a long document more often
        both = crossed(differences)
        (over_seeds,) = compare([Pairs(values[:n].mean(1), values[n:].mean(1))])
        half = stats.t.isf(ALPHA / 2, n * m - 1) * differences.std(ddof=1) / np.sqrt(n * m)
        return Counter(
            studies=1,
            intervals=1,
            covered=covers(both.interval, truth),
            seeds_covered=covers(over_seeds.interval, truth),
            cells_covered=covers((both.estimate - half, both.estimate + half), truth),
        )


SCENARIOS: dict[str, Scores | Documents] = {
    "normal": Scores("normal"),
    "normal_10_seeds": Scores("normal, 10 seeds", seeds=10),
    "normal_35": Scores("normal, 35 comparisons", comparisons=35),
    "normal_3_seeds": Scores("normal, 3 seeds", seeds=3),
    "unequal": Scores("normal, standard deviations from 1/4 to 4", spread=4),
    "missing": Scores("normal, 10 % of the runs fail", missing=0.1),
    "missing_worst": Scores("normal, the worst 10 % of the runs fail", missing=0.1, worst=True),
    "heavy": Scores("heavy tails", noise=heavy),
    "skewed": Scores("skewed, nothing cancels", noise=skewed, control=0.1),
    "documents": Documents("100 documents"),
    "documents_20": Documents("20 documents", documents=20),
    "documents_3_seeds": Documents("100 documents, 3 seeds", seeds=3),
    "documents_seeds": Documents("100 documents, noise of seeds 1", seed_sd=1.0),
    "documents_heavy": Documents("100 documents, heavy tails", noise=heavy),
}


def covers(interval: Sequence[float] | np.ndarray, truth: float = 0.0) -> bool:
    return bool(interval[0] <= truth <= interval[1])


def block(name: str, number: int, studies: int) -> Counter[str]:
    """Return the counts of the `number`-th block of a scenario, the same whenever it is simulated."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    gc.freeze()  # statsmodels collects garbage in each adjustment
    return sum((SCENARIOS[name].study(rng) for _ in range(studies)), Counter())


def stored() -> dict[str, dict[str, int]]:
    """Return the counts of each scenario that was simulated."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few studies of each scenario; writes nothing")
    parser.add_argument("--only", action="append", choices=SCENARIOS, metavar="NAME", help="only this scenario")
    arguments = parser.parse_args()
    for name in arguments.only or SCENARIOS:
        if arguments.quick:
            print(name, json.dumps(block(name, 0, QUICK)), flush=True)
            continue
        while (done := Counter(stored().get(name, {})))["studies"] < STUDIES:
            done += block(name, done["studies"] // BLOCK, BLOCK)
            write_atomically(FILE, json.dumps(stored() | {name: done}, indent=1) + "\n")
        print(name, json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
