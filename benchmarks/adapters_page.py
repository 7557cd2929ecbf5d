"""Writes the measured tables of docs/adapters.md: what each adapter costs, and how it does on a trained model.

    python benchmarks/adapters_page.py           writes them into the page, between their marks
    python benchmarks/adapters_page.py --quick   two adapters, printed, nothing stored

Costs are those of adapters.json, which adapters.py writes; what the suite says on the packaged model is that of
adapters_packaged.json, which `pytest tests/catalogue/test_adapters.py --packaged FILE` writes.
"""

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from adapters import FILE, QUICK, adapters
from losses_page import between, table

PAGE = Path(__file__).parents[1] / "docs" / "adapters.md"
PACKAGED = FILE.with_name("adapters_packaged.json")
SLOW = 1.5  # times LoRA's step: from there on the page says why
# What an adapter says of itself, as the page has it.
STATEMENTS = {
    "starts_elsewhere": "does not start at the base",
    "changes_base": "changes the base",
    "cannot_merge": "cannot be merged",
    "not_on_quantised": "not on 4 bits",
    "not_checkpointed": "not with gradient checkpointing",
    "shaped_by_weights": "a plan does not know its shapes",
    "seedless": "every seed starts alike",
}
# Why a step takes so much longer; it is peft's code that all of them run.
WHY = {
    "adalora": "each step weighs every trained number, half as many again as LoRA's, and has the penalty's gradient",
    "boft": "peft multiplies whole [n, n] matrices of blocks, one for each factor of each target, in every forward",
    "c3a": "peft convolves by Fourier transforms of complex numbers, where the numbers are real",
    "fourierft": "peft builds the whole change [m, n] by a Fourier transform, in every forward",
    "glora": "peft builds the whole weight anew from three low-rank paths, in every forward",
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
    parser.add_argument("--quick", action="store_true", help="two adapters, printed, nothing stored")
    quick = parser.parse_args().quick
    if quick:
        print(costs(rows(), QUICK), packaged(outcomes(), QUICK), sep="\n\n")
    else:
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """Return the page's text, made anew between its marks."""
    text = between(text, "costs", "\n".join([*summary(rows()), "", costs(rows(), adapters()), "", *reasons(rows())]))
    return between(text, "packaged", packaged(outcomes(), adapters()))


def rows() -> dict[str, Any]:
    """Return what was measured, by adapter."""
    return {row["adapter"]: row for row in json.loads(FILE.read_text(encoding="utf-8"))["rows"]}


def outcomes() -> dict[str, dict[str, str]]:
    """Return what each test said on the packaged model, by adapter."""
    return dict(json.loads(PACKAGED.read_text(encoding="utf-8")))


def summary(measured: dict[str, Any]) -> Iterator[str]:
    """Yield on what all this was measured."""
    machines = [row["machine"] for row in measured.values()]
    said = {f"torch {each['torch']} and peft {each['peft']} on {each['threads']} threads" for each in machines}
    seconds, peak = (median(row[f"lora_{what}"] for row in measured.values()) for what in ("seconds", "peak_bytes"))
    yield (
        f"Measured with {', or '.join(sorted(said))} of a CPU. LoRA's step takes {seconds:.2f} s and "
        f"{mebibytes(peak)}; its own row shows how much is noise."
    )
    busy = [each["load"] for each in machines if each["load"] > 1.5 * each["cpus"]]
    if busy:
        yield f"The machine was busy with other things (load up to {max(busy):.0f}): times are rough, memory is not."


def costs(measured: dict[str, Any], names: Iterable[str]) -> str:
    """Return the table of costs."""
    head = ["adapter", "time of a step, LoRA's = 1", "memory, LoRA's = 1", "trains", "on disk", "begins in"]
    return table(head, [cost(measured[name]) for name in names if name in measured])


def cost(row: dict[str, Any]) -> list[str]:
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
    """Return the adapters whose step takes much longer than LoRA's."""
    return sorted(name for name, row in measured.items() if row["ratio"]["median"] >= SLOW)


def reasons(measured: dict[str, Any]) -> Iterator[str]:
    """Yield why the slow ones are slow, an item each."""
    yield from (f"- {name}: {WHY.get(name, 'nobody knows why')}." for name in slow(measured))


def packaged(found: dict[str, dict[str, str]], names: Iterable[str]) -> str:
    """Return the table of what the suite says on the packaged model."""
    lines = [[name, held(found[name]), ", ".join(excepted(name)) or "-"] for name in names if name in found]
    return table(["adapter", "holds", "excepted, as it says itself"], lines)


def held(tests: dict[str, str]) -> str:
    """Return how many tests hold, and which do not."""
    failed = sorted(name.replace("_", " ") for name, outcome in tests.items() if outcome == "failed")
    held_to = [outcome for outcome in tests.values() if outcome != "skipped"]
    counted = f"{len(held_to) - len(failed)} of {len(held_to)}"
    return f"{counted}; not: {', '.join(failed)}" if failed else counted


def excepted(name: str) -> Iterator[str]:
    """Yield what an adapter says that it cannot hold, with its reason."""
    plugin = adapters()[name]
    for statement, words in STATEMENTS.items():
        if reason := getattr(plugin, statement, ""):
            yield f"{words} ({reason})"


if __name__ == "__main__":
    main()
