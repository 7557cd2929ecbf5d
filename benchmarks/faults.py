"""Attacks and damage: mutated recipes, kills, damaged files, faults of a server, planted secrets, hostile recipes.

    python benchmarks/faults.py               every case; hours, resumed where it was stopped; writes faults.json
    python benchmarks/faults.py --only NAME   one part, such as `recipes`; may be given several times
    python benchmarks/faults.py --quick       a few cases of each part; writes nothing

Each case is one or more commands, in forked processes, on tiny random models in a temporary folder. A part is a module
with TITLE, PROMISE, the number QUICK, `cases(lab)` in a fixed order, and `attempt(lab, case)`, which returns a Result.
The exit status is 1 where a promise was broken. `python benchmarks/faults_page.py` writes the table of the docs.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the tiny models and the hub's server of the tests
sys.path.insert(0, str(Path(__file__).parent))
import faults_code
import faults_damage
import faults_kills
import faults_push
import faults_recipes
import faults_secrets
import faults_teacher
from faults_lab import Lab, Result, lab

from neoplug.files import write_atomically
from neoplug.files.atomic import lock

FILE = Path(__file__).with_suffix(".json")
PARTS: dict[str, ModuleType] = {
    "recipes": faults_recipes,
    "kills": faults_kills,
    "damage": faults_damage,
    "teacher": faults_teacher,
    "push": faults_push,
    "secrets": faults_secrets,
    "code": faults_code,
}
STORED = 20  # cases between two writes of the file


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="a few cases of each part; writes nothing")
    arguments.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help="only this part")
    arguments.add_argument("--again", action="store_true", help="forget the cases of these parts that are stored")
    arguments.add_argument("--jobs", type=int, default=2, help="cases at a time")
    chosen = arguments.parse_args()
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }  # before torch is imported
    names = chosen.only or list(PARTS)
    with lab() as made:
        broken = sum(measure(name, made, chosen) for name in names)
    sys.exit(broken > 0)


def measure(name: str, made: Lab, chosen: argparse.Namespace) -> int:
    """Try the cases of a part, print its row, and return the number of broken promises."""
    part = PARTS[name]
    row = {} if chosen.quick or chosen.again else stored().get(name, {})
    cases = part.cases(made)
    left = cases[:: -(-len(cases) // part.QUICK)] if chosen.quick else cases[row.get("cases", 0) :]
    results_of = tried(part, made, left, chosen.jobs)
    while results := list(islice(results_of, STORED)):
        row = added(row, results)
        if not chosen.quick:
            store(name, row | {"of": len(cases)})
        print(name, json.dumps(row), flush=True)
    return len(row.get("failures", []))


def tried(part: ModuleType, made: Lab, cases: Sequence[Any], jobs: int) -> Iterator[Result]:
    """Yield the results of cases, in their order."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("fork")) as workers:
        yield from workers.map(partial(part.attempt, made), cases)


def added(row: dict[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    """Return a part's row with more results."""
    outcomes = dict(row.get("outcomes", {}))
    for result in results:
        outcomes[result.outcome] = outcomes.get(result.outcome, 0) + 1
    return {
        "cases": row.get("cases", 0) + len(results),
        "outcomes": dict(sorted(outcomes.items())),
        "seconds": round(max(row.get("seconds", 0.0), *(result.seconds for result in results)), 2),
        "megabytes": round(max(row.get("megabytes", 0.0), *(result.megabytes for result in results))),
        "failures": row.get("failures", []) + [result.failure for result in results if result.failure],
    }


def stored() -> dict[str, Any]:
    """Return the rows that are measured."""
    return json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}


def store(name: str, row: dict[str, Any]) -> None:
    """Replace a part's row in the file, which another process may write too."""
    with lock(Path(tempfile.gettempdir(), FILE.name)):
        write_atomically(FILE, json.dumps(stored() | {name: row}, indent=1) + "\n")


if __name__ == "__main__":
    main()
