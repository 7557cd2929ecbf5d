"""Generates the measured tables of docs/reference/adapters.md: costs, and test results on a trained model.

    python benchmarks/adapters_page.py           writes them into the page, between their markers
    python benchmarks/adapters_page.py --quick   prints two adapters and stores nothing

Costs come from adapters.json, which adapters.py writes; test results on the packaged model come from
adapters_packaged.json, which `pytest tests/catalogue/test_adapters.py --packaged FILE` writes.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from adapters import FILE, QUICK, adapters
from losses_page import replace_between, table

from neoplug import AdapterTraits

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "adapters.md"
PACKAGED = FILE.with_name("adapters_packaged.json")
SLOW = 1.5  # step time relative to LoRA's from which on the page gives a reason
# Traits by which an adapter declares an exception -> the words of the page.
STATEMENTS = {
    "starts_elsewhere": "initial output differs from the base",
    "changes_base": "changes the base weights",
    "cannot_merge": "cannot be merged",
    "not_on_quantised": "not on 4 bits",
    "not_checkpointed": "not with gradient checkpointing",
    "shaped_by_weights": "shapes depend on the weights",
    "mixes_documents": "depends on the micro-batch",
    "seedless": "initialisation does not depend on the seed",
}
# Why a step takes much longer than LoRA's. All of them run peft's code.
WHY = {
    "adalora": "each step scores every trainable parameter, 1.5 times LoRA's, and has the penalty's gradient",
    "boft": "peft multiplies whole [n, n] matrices of blocks, one for each factor of each target, in every forward",
    "c3a": "peft convolves by Fourier transforms of complex numbers, though its inputs are real",
    "fourierft": "peft builds the whole change [m, n] by a Fourier transform, in every forward",
    "glora": "peft rebuilds the whole weight from three low-rank paths, in every forward",
    "hira": "peft builds the whole change [m, n] in every forward, to multiply it with the weight",
    "hra": "peft multiplies r reflections into a whole [n, n] matrix, one after the other, in every forward",
    "loha": "peft builds the whole change [m, n] from two products, in every forward",
    "lokr": "peft builds the whole change [m, n] in every forward",
    "osf": "nearly all singular components train, and go through two more products of the weight's size",
    "randlora": "peft scales and sums random matrices of the weight's size in every forward",
    "shira": "peft copies the whole weight and builds the whole change [m, n] in every forward",
    "waveft": "peft builds the whole change [m, n] by a wavelet transform, in every forward",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="print two adapters and store nothing")
    quick = parser.parse_args().quick
    if quick:
        print(costs(rows(), QUICK), packaged(outcomes(), QUICK), sep="\n\n")
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Return the text of the page, regenerated between its markers."""
    text = replace_between(
        text, "costs", "\n".join([*summary(rows()), "", costs(rows(), adapters()), "", *reasons(rows())])
    )
    return replace_between(text, "packaged", packaged(outcomes(), adapters()))


def rows() -> dict[str, Any]:
    """Return the measurements by adapter."""
    return {row["adapter"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]}


def outcomes() -> dict[str, dict[str, str]]:
    """Return the outcome of each test on the packaged model, by adapter."""
    return dict(json.loads(PACKAGED.read_text(encoding="utf-8")))


def summary(measured: dict[str, Any]) -> Iterator[str]:
    """Yield the machine and versions of the measurement."""
    machines = [row["machine"] for row in measured.values()]
    setups = {f"torch {each['torch']} and peft {each['peft']} on {each['threads']} threads" for each in machines}
    seconds, peak = (median(row[f"lora_{what}"] for row in measured.values()) for what in ("seconds", "peak_bytes"))
    yield (
        f"Measured with {', or '.join(sorted(setups))} of a CPU. LoRA's step takes {seconds:.2f} s and "
        f"{mebibytes(peak)}; the row of `lora` shows the noise of the measurement."
    )
    busy = [each["load"] for each in machines if each["load"] > 1.5 * each["cpus"]]
    if busy:
        yield f"Other processes used the machine (load up to {max(busy):.0f}): times are approximate, memory is exact."


def costs(measured: dict[str, Any], names: Iterable[str]) -> str:
    """Return the table of costs."""
    head = ["adapter", "time per step (LoRA = 1)", "memory (LoRA = 1)", "trainable", "on disk", "initialisation"]
    return table(head, [cost(measured[name]) for name in names if name in measured])


def cost(row: dict[str, Any]) -> list[str]:
    """Return the cells of an adapter's row of costs."""
    ratio, memory = row["ratio"], row["peak_bytes"] / row["lora_peak_bytes"]
    return [
        row["adapter"],
        f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})",
        f"{memory:.2f}",
        f"{row['parameters']:,}",
        size(row["disk_bytes"]),
        f"{row['begin_seconds']:.1f} s",
    ]


def size(count: int) -> str:
    return mebibytes(count) if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count < 10 * 2**20 else f"{count / 2**20:,.0f} MiB"


def slow(measured: dict[str, Any]) -> list[str]:
    """Return the adapters whose step takes at least SLOW times LoRA's."""
    return sorted(name for name, row in measured.items() if row["ratio"]["median"] >= SLOW)


def reasons(measured: dict[str, Any]) -> Iterator[str]:
    """Yield the reason for each slow adapter, one list item each."""
    yield from (f"- {name}: {WHY.get(name, 'reason unknown')}." for name in slow(measured))


def packaged(found: dict[str, dict[str, str]], names: Iterable[str]) -> str:
    """Return the table of test results on the packaged model, then the reasons of all declared exceptions."""
    shown = [name for name in names if name in found]
    lines = [[name, passed(found[name]), ", ".join(words for words, _ in declared(name)) or "-"] for name in shown]
    return "\n".join([table(["adapter", "tests passed", "declared exceptions"], lines), "", *exceptions(shown)])


def exceptions(names: Iterable[str]) -> Iterator[str]:
    """Yield the declared exceptions as a list: each reason with the adapters that give it."""
    groups: dict[tuple[str, str], list[str]] = {}
    for name in names:
        for exception in declared(name):
            groups.setdefault(exception, []).append(f"`{name}`")
    for words in STATEMENTS.values():
        given = [(reason, named) for (exception, reason), named in groups.items() if exception == words]
        if given:
            yield f"- {words}:"
            yield from (f"    - {', '.join(named)}: {reason}" for reason, named in given)


def passed(tests: dict[str, str]) -> str:
    """Return how many of the tests pass, and which fail."""
    failed = sorted(name.replace("_", " ") for name, outcome in tests.items() if outcome == "failed")
    applicable = [outcome for outcome in tests.values() if outcome != "skipped"]
    count = f"{len(applicable) - len(failed)} of {len(applicable)}"
    return f"{count}; not: {', '.join(failed)}" if failed else count


def declared(name: str) -> Iterator[tuple[str, str]]:
    """Yield the exceptions that an adapter declares: (the exception in words, its reason)."""
    plugin = adapters()[name]
    for statement, words in STATEMENTS.items():
        if reason := getattr(AdapterTraits.of(plugin), statement):
            yield words, reason


if __name__ == "__main__":
    main()
