"""Changed recipes and overrides, seeded: refused with their place, or a valid plan, in bounded time and memory."""

import re
from collections.abc import Sequence
from functools import cache

from faults_lab import Lab, Result
from mutations import mutant, overrides
from variations import overriding_variation, variation

from neoplug.recipe import load
from neoplug.recipe.source import shipped

TITLE = "changed recipes and overrides"
PROMISE = "a valid plan, or exit 2 with file:line; below 2 s and 500 MB"
NUMBER, QUICK = 20_000, 24  # cases
SECONDS, MEGABYTES = 2.0, 500.0  # of one plan: processor time, resident memory
PLACE = re.compile(r"^[^\n]+:\d+:\d+: ")


def cases(lab: Lab) -> Sequence[int]:
    """Return seeds: of four, two mutate a recipe's text and its overrides, and two vary them within what is valid."""
    return range(NUMBER)


def attempt(lab: Lab, seed: int) -> Result:
    """Plan a changed recipe."""
    texts = _texts(lab)
    text = texts[seed // 4 % len(texts)]
    change = (mutant, overrides, variation, overriding_variation)[seed % 4](text, seed)
    written, changes = (change, []) if isinstance(change, str) else (text, [*change])
    with lab.copy() as case:
        file = case / "recipe.yaml"
        file.write_text(written, encoding="utf-8", errors="surrogatepass", newline="")
        found = lab.command(lab.folder / "plans", "plan", file, "--json", "--quick", "--", *changes)
    outcome = {0: "planned", 2: "refused"}.get(found.code, "failed")
    failure = ""
    if outcome == "failed" or found.is_traceback or (found.code == 2 and not PLACE.search(found.err)):
        failure = f"seed {seed}: exit {found.code}: {found.err.strip()[:200]!r}"
    elif found.seconds > SECONDS or found.megabytes > MEGABYTES:
        failure = f"seed {seed}: {found.seconds:.1f} s, {found.megabytes:.0f} MB"
    return Result(outcome, failure, found.seconds, found.megabytes)


@cache
def _texts(lab: Lab) -> list[str]:
    """Return the lab's recipe, and the shipped ones with the lab's models."""
    from neoplug.runs.plan import plan  # it imports torch, which reads the environment

    texts = [lab.recipe.read_text(encoding="utf-8")]
    model, rows = lab.folder / "student", lab.folder / "chat.jsonl"
    for name, file in shipped().items():
        if name.startswith("published/"):  # of models on the hub
            continue
        text = re.sub(r"model: pypi:\S+", f"model: {model}", file.read_text(encoding="utf-8"))
        text = re.sub(r"layers: \[[^]]*\]", "layers: [0, 2]", text)
        if name == "base":
            text = text.replace("data:\n", f"data:\n  source: {rows}\n")
            text += f"teacher: {{model: {model}}}\nstudent: {{model: {model}}}\n"
        texts.append(text)
    plan(load(lab.recipe), quick=True)  # what a process reads or builds once, it has before it is forked
    return texts
