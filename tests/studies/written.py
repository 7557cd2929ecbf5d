"""Directories of studies with known content, as a study leaves them, for tests of what reads them."""

import hashlib
import json
from itertools import product

import numpy as np
import pandas as pd

from neoplug.studies.halves import half_of

ADAPTERS, LOSSES = ("lora", "dora", "pissa", "moslora"), ("ce", "forward_kl", "neo")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SEEDS, TUNING = (0, 1, 2, 3, 4), (100, 101)
GAIN = {"ce": 0.0, "forward_kl": 0.05, "neo": 0.12}
DOCUMENTS = 24


def write_study(
    folder, adapters=ADAPTERS, losses=LOSSES, seeds=SEEDS, contrasts=True, failed=(), missing=(), search=True,
    documents=True, curves=True, noise=0.01, gain=GAIN, name="llm_neo_robustness", margin=0.02,
    axes=("adapter", "loss"), metrics=("cross_entropy", "forward_kl", "top1_agreement"),
):  # fmt: skip
    """Write the files of a study.

    failed   (adapter, loss, seed) of test runs that diverged; "all": each one
    missing  the same of test runs that have not ended
    """
    rng = np.random.default_rng(0)
    effects = {seed: 0.03 * rng.normal() for seed in (*seeds, *TUNING)}
    arms = list(product(adapters, losses))
    rows, ledger, references, sums = [], [], [], []
    for at, (adapter, loss) in enumerate(arms):
        for reference, value in (("untrained", 2.86), ("teacher", 2.10)):
            measures = {"forward_kl": 0.61} if reference == "untrained" else {}
            references.append(
                {axes[0]: adapter, axes[1]: loss, "reference": reference, "cross_entropy": value} | measures
            )
        base = 2.4 - gain.get(loss, 0.01 * (at % 7)) - 0.004 * (at % len(adapters))
        best = 1e-3 if adapter == "pissa" else 3e-3
        jobs = [("search", seed, rate) for rate, seed in product(RATES, TUNING)] if search else []
        for kind, seed, rate in [*jobs, *(("test", seed, best) for seed in seeds)]:
            if (adapter, loss, seed) in missing and kind == "test":
                continue
            bad = kind == "test" and (failed == "all" or (adapter, loss, seed) in failed)
            bad |= kind == "search" and adapter == "pissa" and rate > 5e-3
            value = base + effects[seed] + noise * rng.normal() + 0.08 * np.log10(rate / best) ** 2
            job = hashlib.sha256(f"{adapter}/{loss}/{kind}/{seed}/{rate}".encode()).hexdigest()[:16]
            run = f"runs/{job}" if kind == "test" and seed == seeds[0] and not bad else ""
            kl = value - 2.0 + 0.004 * rng.normal()
            measured = {"cross_entropy": value, "forward_kl": kl, "top1_agreement": 0.9 - kl / 2}
            validation = {f"validation_{key}": one + 0.01 for key, one in measured.items()}
            rows.append(
                {axes[0]: adapter, axes[1]: loss, "seed": seed, "kind": kind,
                 "status": "diverged" if bad else "completed",
                 "reason": "the loss is not finite at step 12" if bad else "", "trials": len(RATES) if search else 0,
                 "learning_rate": rate, **({} if bad or kind == "search" else measured), **({} if bad else validation),
                 "trainable_parameters": 36_864 * (1 + at % len(adapters)), "seconds": 11.2 + at % 5 + rng.random(),
                 "tokens": 61_440, "run": run, "total_parameters": 13_000_000, "answer_tokens": 15_300, "steps": 60,
                 "peak_memory_bytes": 1_900_000_000 + 40_000_000 * (at % len(adapters)), "id": job}
            )  # fmt: skip
            row = {"id": job, "status": rows[-1]["status"], "finished": "2030-01-02T03:04:05+00:00"}
            if kind == "test" and not bad and curves:
                tokens = [1024 * step for step in range(1, 61)]
                losses_of = [value + 0.5 * 0.94**step + 0.02 * rng.normal() for step in range(1, 61)]
                row["curve"] = {"tokens": tokens, "loss": losses_of}
            ledger.append(row)
            if run:
                (folder / run).mkdir(parents=True)
            if kind == "test" and documents and not bad:
                sums += _documents(
                    {axes[0]: adapter, axes[1]: loss, "seed": seed, "kind": kind, "id": job}, measured, rng
                )
    margins = {name: None if name == "top1_agreement" else margin for name in metrics}
    keys = {"train.learning_rate": {"values": list(RATES), "extend": 1, "scale": {}}} if search else {}
    compared = [name for name in metrics if name != "top1_agreement"]
    planned = {"name": f"{axes[1]}=ce", "control": {axes[1]: "ce"}, "arms": {}, "metrics": compared}
    facts = {
        "format": 1,
        "name": name,
        "file": f"{name}.yaml",
        "overrides": [],
        "axes": {axes[0]: list(adapters), axes[1]: list(losses)},
        "arms": [{axes[0]: adapter, axes[1]: loss} for adapter, loss in arms],
        "seeds": list(seeds),
        "search": {"seeds": list(TUNING) if search else [], "keys": keys},
        "metrics": margins,
        "contrasts": [planned] if contrasts else [],
        "executor": {"local": {"workers": 2}},
        "match": None,
        "keep": "best",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.json").write_text(json.dumps(facts))
    contents = {json.dumps({"model": "HuggingFaceTB/SmolLM2-135M", "revision": None}): ["a" * 64, None]}
    (folder / "study.lock.json").write_text(json.dumps({"format": 1, "version": "0.1.0", "contents": contents}))
    (folder / "ledger.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ledger))
    columns = ["forward_kl", "cross_entropy", "top1_agreement"]
    frame = pd.DataFrame(rows)
    frame = frame.reindex(columns=[*frame.columns, *(name for name in columns if name not in frame)])
    frame.to_parquet(folder / "results.parquet", index=False)
    frame.to_csv(folder / "results.csv", index=False)
    pd.DataFrame(references).to_parquet(folder / "references.parquet", index=False)
    if sums:
        pd.DataFrame(sums).to_parquet(folder / "documents.parquet", index=False)
    return folder


def _documents(facts, measured, rng):
    """Return the sums of a run on each document; they depend on the document, and little on the run."""
    rows = []
    for number in range(DOCUMENTS):
        content_hash = hashlib.sha256(f"document {number}".encode()).hexdigest()
        tokens = 40 + 3 * number
        shift = 0.2 * np.sin(number)
        sums = {name: tokens * (value + shift + 0.005 * rng.normal()) for name, value in measured.items()}
        rows.append({**facts, "half": half_of(content_hash), "document": content_hash, "tokens": tokens, **sums})
    return rows


def write_small_study(folder, **changes):
    """Write the files of a study of four arms and one metric."""
    small = {"adapters": ("lora", "dora"), "losses": ("ce", "neo"), "metrics": ("cross_entropy",)}
    return write_study(folder, **small | changes)
