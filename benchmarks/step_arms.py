"""One arm of `step.py` in a separate process: `python step_arms.py FOLDER SHAPE ARM` trains on request.

Requests are lines of its input: `pass` takes a step on each batch, `memory` two steps whose tensor bytes are counted.
B rows, L columns, N scored positions, H hidden size, V vocabulary.
"""

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from time import perf_counter, process_time
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).parent))
from step_models import load_models, optimizer_of
from step_rows import Row, Rows

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
ENDLESS = 10**6
DEVICE, ROW = "cpu", 256  # and the length of rows without padding; `gpu_arm.py` sets both
STORED = ("states", "sampled")  # arms of a teacher whose output is stored


def main() -> None:
    folder, shape, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    rows: Rows = json.loads((folder / f"{shape}.json").read_text(encoding="utf-8"))
    kind, _, way = name.partition(" ")
    teacher, student = load_models(folder, torch.bfloat16 if way == "bf16" else torch.float32)
    train = KINDS[kind]
    if way in STORED:
        train = partial(train, stored=way)
    train(teacher, student, bucketed_rows(rows) if way == "bucketed" else rows, Passes(len(rows)))


def bucketed_rows(rows: Rows) -> Rows:
    """Return the same rows in as many batches, sorted by length."""
    rows_by_length = sorted((row for batch in rows for row in batch), key=lambda row: -len(row["input_ids"]))
    size = len(rows[0])
    return [rows_by_length[at : at + size] for at in range(0, len(rows_by_length), size)]


class Passes:
    """Waits for a request before the first step of a pass; prints the cost of the pass after its last step."""

    def __init__(self, steps: int) -> None:
        self.steps, self.left, self.loaded = steps, 0, resident("VmRSS")
        self.profile: profile | None = None

    def begin(self) -> None:
        """Begin a step: the first of a pass waits for a request."""
        if self.left:
            return
        if sys.stdin.readline().strip() == "memory":
            self.left, self.profile = 2, profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self.profile.start()
            return
        self.left = self.steps
        release()
        RESET.write_text("5")  # the peak is reset
        self.started, self.cpu = perf_counter(), process_time()

    def end(self) -> None:
        """End a step: after the last of a pass, print its cost."""
        self.left -= 1
        if self.left:
            return
        if self.profile is not None:
            self.profile.stop()
            found = {"tensor_bytes": peak_bytes(self.profile)}
            self.profile = None
        else:
            found = {"seconds": perf_counter() - self.started, "cpu_seconds": process_time() - self.cpu}
            found["peak_bytes"] = resident("VmHWM") - self.loaded
        print("PASS", json.dumps(found), flush=True)
        release()


def peak_bytes(profiled: profile) -> int:
    """Return the peak bytes of the tensors that were created under a profile."""
    assert profiled.profiler is not None
    events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def release() -> None:
    """Return freed memory to the system, so that waiting arms do not keep it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def resident(field: str) -> int:
    """Return a field of this process's status, as VmRSS (resident memory) or VmHWM (its peak), in bytes."""
    (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


def padded(batch: list[Row]) -> dict[str, Tensor]:
    """Return input_ids, attention_mask and labels [B, L] of a batch, padded on the right to its longest row."""
    longest = max(len(row["input_ids"]) for row in batch)
    found: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in batch:
        ids, gap = row["input_ids"], longest - len(row["input_ids"])
        labels = [token if scored else -100 for token, scored in zip(ids, row["scored"], strict=True)]
        found["input_ids"].append(ids + [0] * gap)
        found["attention_mask"].append([1] * len(ids) + [0] * gap)
        found["labels"].append(labels + [-100] * gap)
    return {name: torch.tensor(values) for name, values in found.items()}


def limit(
    teacher: Any, student: Any, rows: Rows, passes: Passes, heads: bool = False, stored: str | None = None
) -> None:
    """Train without heads and loss, on the real tokens; with `heads`, also compute their three matrix products.

    stored  "states": without the teacher's backbone; "sampled": without the teacher, but with log-sum-exp and softmax
    """
    optimizer = optimizer_of(student)
    for batch in endless_batches(rows, passes):
        ids, scored = unpadded(batch)
        with torch.no_grad():
            theirs = torch.zeros(*ids.shape, teacher.config.hidden_size, device=DEVICE)
            if not stored:
                theirs = teacher.model(ids, use_cache=False).last_hidden_state
        with torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE != "cpu"):
            hidden = student.base_model.model.model(ids, use_cache=False).last_hidden_state
        gradient = torch.full_like(hidden, 1e-6)
        if heads:
            with torch.no_grad():
                if stored != "sampled":
                    theirs.flatten(0, 1)[:scored] @ teacher.lm_head.weight.t()
                weight = student.base_model.model.lm_head.weight
                logits = hidden.flatten(0, 1)[:scored] @ weight.t()
                if stored == "sampled":
                    logits.logsumexp(-1)
                    torch.softmax(logits, -1, out=logits)
                gradient.view(-1, hidden.shape[-1])[:scored] = logits @ weight
                del logits
        hidden.backward(gradient)
        nn.utils.clip_grad_norm_([p for p in student.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        optimizer.zero_grad()
        passes.end()


def unpadded(batch: list[Row]) -> tuple[Tensor, int]:
    """Return the real tokens in rows of equal length, at most ROW, and the number of scored positions."""
    ids = torch.tensor([token for row in batch for token in row["input_ids"]])
    count = -(-len(ids) // ROW)
    size = round(len(ids) / count)
    ids = torch.cat([ids, ids])[: count * size]  # may add or drop a few tokens
    return ids.view(count, size).to(DEVICE), sum(sum(row["scored"]) for row in batch)


def endless_batches(rows: Rows, passes: Passes) -> Iterator[list[Row]]:
    """Yield the batches again and again, each after the beginning of a step."""
    while True:
        for batch in rows:
            passes.begin()
            yield batch


def neoplug(teacher: Any, student: Any, rows: Rows, passes: Passes, stored: str | None = None) -> None:
    """Train with the loop of `neoplug run`; `stored` is the kind of the teacher's cache, None for its model."""
    from neoplug.distributed.world import World
    from neoplug.environment.memory import keep_freed
    from neoplug.models.verify import head_name, language_model
    from neoplug.models.vocabulary import Vocabulary
    from neoplug.recipe import Train
    from neoplug.recipe.loss_weights import Weight
    from neoplug.registry import Plugins
    from neoplug.runs.steps import make_losses
    from neoplug.teachers.live import LiveTeacher
    from neoplug.training.loop import LoopConfig, LoopEvents, distil
    from neoplug.training.metrics import Metrics
    from neoplug_losses.cross_entropy import CrossEntropy
    from neoplug_losses.forward_kl import ForwardKL

    plugins = Plugins({"loss": {"cross_entropy": CrossEntropy(), "forward_kl": ForwardKL()}})
    vocabulary = Vocabulary(teacher.config.vocab_size)
    name, longest = head_name(teacher), max(len(row["input_ids"]) for batch in rows for row in batch)
    optimizer = optimizer_of(student)
    autocast = None if teacher.dtype == torch.float32 else teacher.dtype
    model = language_model(teacher, name, vocabulary, role="teacher", longest=longest)

    learner = language_model(student, name, vocabulary, longest=longest, autocast=autocast)
    losses = make_losses(plugins, reads_entries=stored == "sampled", student=learner)

    def end() -> bool:
        passes.end()
        passes.begin()
        return False

    config = LoopConfig(
        teacher=cached(model, stored, documents(rows)) if stored else LiveTeacher(model),
        student=learner,
        average=None,
        losses=losses,
        references=[],
        weights={loss.name: Weight(0.5) for loss in losses},
        plugins=Plugins({}),
        corpus=SimpleNamespace(rows=documents(rows)),  # type: ignore[arg-type]
        sampler=GivenBatches([len(batch) for batch in rows]),  # type: ignore[arg-type]
        optimizer=optimizer,
        schedule=torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
        world=World(DEVICE),
        settings=Train(max_steps=ENDLESS, save_steps=ENDLESS),
        total_steps=ENDLESS,
        eval_steps=None,
        seed=0,
    )
    events = LoopEvents(
        metrics=Metrics(weights_vary=False, write=lambda lines: None),
        on_calibrated=lambda weights: None,
        save=lambda step: None,
        evaluate=lambda step: None,  # type: ignore[arg-type,return-value]
        ends_early=lambda step: False,
        stop_requested=end,
    )
    keep_freed()  # as `neoplug run` does
    passes.begin()
    distil(config, events)


def cached(teacher: Any, kind: str, rows: list[list[Any]]) -> Any:
    """Return the teacher that reads the stored output of a model for some documents."""
    from safetensors.torch import save_file

    from neoplug.data.batch import collate
    from neoplug.registry import Plugins
    from neoplug.runs.cache_folder import TeacherCache
    from neoplug.teachers.cache_files import HEAD, TRAIN, Header, ShardWriter
    from neoplug_teachers.sampled import Sampled
    from neoplug_teachers.states import States

    plugin: Any = States("float32") if kind == "states" else Sampled(bytes=40)
    plugins, rng = Plugins({"teacher.cache": {kind: plugin}}), torch.Generator()
    texts = [document for row in rows for document in row]
    with torch.no_grad():
        states = [teacher.hidden(collate([text])) for text in texts]
    logits = teacher.head.prepare_logits_fn()
    fitted = plugins.one("fit_cache", states=torch.cat(states), logits=logits) or {}
    header = Header({}, {"name": kind, "options": {}}, 1, fitted, states[0].shape[1], 1.0, None)
    folder = Path(sys.argv[1], kind)
    writer = ShardWriter(folder / TRAIN, header.sha256)
    for text, part in zip(texts, states, strict=True):
        record = plugins.one("encode_teacher", states=part, logits=logits, fitted=fitted, rng=rng)
        writer.add(text.content_hash, [record], len(part))
    writer.flush()
    save_file(teacher.head.effective_linear(header.hidden_size).state_dict(), folder / HEAD)
    return TeacherCache(folder, header, plugins).teacher(teacher.head.vocabulary, teacher.device)


def documents(rows: Rows) -> list[list[Any]]:
    """Return each row as a row of one document."""
    import numpy as np

    from neoplug.data.batch import Document

    flat = [row for batch in rows for row in batch]
    return [[Document(np.array(r["input_ids"]), np.array(r["scored"]), at)] for at, r in enumerate(flat)]


class GivenBatches:
    """A sampler that returns the given batches in order."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes, self.steps_per_epoch = sizes, len(sizes)

    def micro_batches(self, step: int, rank: int) -> list[list[int]]:
        """Return the rows of a step, in one micro-batch."""
        at = step % len(self.sizes)
        return [list(range(sum(self.sizes[:at]), sum(self.sizes[: at + 1])))]


def settings(kind: type, **more: Any) -> Any:
    """Return the arguments of a trainer, as an object of its class `kind`."""
    common = {"output_dir": "/tmp/unused", "max_steps": ENDLESS, "learning_rate": 1e-4, "report_to": []}
    common |= {"save_strategy": "no", "logging_steps": 10, "use_cpu": DEVICE == "cpu", "bf16": DEVICE != "cpu"}
    common |= {"lr_scheduler_type": "constant", "gradient_checkpointing": False, "remove_unused_columns": False}
    return kind(**common, disable_tqdm=True, **more)


def reporting(passes: Passes) -> Any:
    """Return a callback that reports a trainer's steps to `passes`."""
    from transformers import TrainerCallback

    class ReportSteps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            passes.begin()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            passes.end()

    return ReportSteps()


def with_batches(kind: type, batches: list[dict[str, Tensor]]) -> type:
    """Return a subclass of a trainer that trains on these batches, again and again."""
    loader = batches * 50
    return type("WithBatches", (kind,), {"get_train_dataloader": lambda self: loader})


def trainer(teacher: Any, student: Any, rows: Rows, passes: Passes) -> None:
    """Train with Hugging Face's Trainer and full logits in float32; the teacher computes no cross-entropy."""
    from transformers import Trainer, TrainingArguments

    class FullLogits(Trainer):
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            teacher_inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
            outputs = model(**inputs)
            with torch.no_grad():
                theirs = teacher(**teacher_inputs).logits
            log_p, log_q = (torch.log_softmax(z[:, :-1].float(), -1) for z in (theirs, outputs.logits))
            kl = nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)
            scored = inputs["labels"][:, 1:] != -100
            return 0.5 * outputs.loss + 0.5 * (kl * scored).sum() / scored.sum()

    arguments = settings(TrainingArguments)
    kind = with_batches(FullLogits, [padded(batch) for batch in rows])
    kind(model=student, args=arguments, callbacks=[reporting(passes)]).train()


def placeholder_dataset(rows: Rows) -> Any:
    """Return a dataset with as many rows, which TRL requires but does not read here."""
    from datasets import Dataset

    return Dataset.from_list([{"prompt": "unused", "messages": []} for batch in rows for _ in batch])


def gkd(teacher: Any, student: Any, rows: Rows, passes: Passes) -> None:
    """Train with TRL's GKD and its forward KL, always on given answers."""
    from transformers import AutoTokenizer
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    tokenizer = AutoTokenizer.from_pretrained(Path(sys.argv[1], "student"))
    arguments = settings(GKDConfig, lmbda=-0.0, beta=0.0, seq_kd=False)
    kind = with_batches(GKDTrainer, [padded(batch) for batch in rows])
    given_rows, callbacks = placeholder_dataset(rows), [reporting(passes)]
    kind(
        model=student, teacher_model=teacher, args=arguments, train_dataset=given_rows, processing_class=tokenizer,
        callbacks=callbacks,
    ).train()  # fmt: skip


def trl(teacher: Any, student: Any, rows: Rows, passes: Passes) -> None:
    """Train with TRL's Distillation trainer and its forward KL, on given answers in place of generated ones."""
    from transformers import AutoTokenizer
    from trl import DistillationConfig, DistillationTrainer

    class GivenAnswers(DistillationTrainer):
        def _prepare_inputs(self, inputs: Any) -> Any:
            return {name: tensor.to(DEVICE) for name, tensor in inputs.items()}

    tokenizer = AutoTokenizer.from_pretrained(Path(sys.argv[1], "student"))
    arguments = settings(DistillationConfig, beta=0.0)
    kind = with_batches(GivenAnswers, [completed(batch) for batch in rows])
    given_rows, callbacks = placeholder_dataset(rows), [reporting(passes)]
    kind(
        model=student, teacher_model=teacher, args=arguments, train_dataset=given_rows, processing_class=tokenizer,
        callbacks=callbacks,
    ).train()  # fmt: skip


def completed(batch: list[Row]) -> dict[str, Tensor]:
    """Return a batch in the form of TRL's Distillation trainer: the first token is the prompt."""
    whole = padded(batch)
    scored = (whole["labels"] != -100).long()
    return {
        "prompt_ids": whole["input_ids"][:, :1],
        "prompt_mask": whole["attention_mask"][:, :1],
        "completion_ids": whole["input_ids"][:, 1:],
        "completion_mask": whole["attention_mask"][:, 1:],
        "tool_mask": scored[:, 1:],
        "num_items_in_batch": scored.sum(),
    }


KINDS: dict[str, Callable[..., None]] = {
    "limit": limit,
    "heads": partial(limit, heads=True),
    "neoplug": neoplug,
    "trainer": trainer,
    "gkd": gkd,
    "trl": trl,
}

if __name__ == "__main__":
    main()
