"""The pseudocode in hookspecs is the order of calls: it is expanded, and compared with what a run calls."""

import inspect
import re
from pathlib import Path

import pytest

from neoplug import hookspecs
from neoplug import recipe as recipes
from neoplug.errors import RunError
from neoplug.export.merge import standalone_model
from neoplug.registry import SPECS
from neoplug.registry.consent import Consent
from neoplug.runs.directory import RunDir
from neoplug.runs.preview import preview
from neoplug.runs.saved_student import base_of

STEPS, MICRO_BATCHES, EVAL_STEPS, SAVE_STEPS = 4, 2, 3, 2
NAMES = [*SPECS, "state_dict", "load_state_dict"]
# A header of a block -> how often the block runs, given the step, without a teacher's cache.
TIMES = {
    "on the meta device, without data": lambda step: 1,
    "for role in teacher, student": lambda step: 2,
    "for model in teacher, student": lambda step: 2,
    "for step in range(max_steps)": lambda step: STEPS,
    "for batch in the step's micro-batches": lambda step: MICRO_BATCHES,
    "for row of the batch": lambda step: 1,
    "for chunk of the batch's answer tokens": lambda step: 1,
    "every logging_steps, evaluation and save, and after the last step": lambda step: step in (2, 3, 4),
    "for line in those that are new in metrics.jsonl": lambda step: {2: 2, 3: 1, 4: 1}[step],
    "for line in the same, but not after the last step": lambda step: {2: 2, 3: 1, 4: 0}[step],
    "every eval_steps, but not after the last step": lambda step: step % EVAL_STEPS == 0 and step != STEPS,
    "every save_steps, and after the last step": lambda step: step % SAVE_STEPS == 0 or step == STEPS,
    "in `neoplug export`, after the run": lambda step: 1,
    "in `neoplug preview`, without models": lambda step: 1,
    "with `teacher.cache`": lambda step: 0,
    "for document in those that are not stored": lambda step: STEPS * MICRO_BATCHES,
    "with a cache of entries, in place of these two": lambda step: 0,
}
# The same where the teacher's output is cached: of the models, a run then loads and evaluates the student.
CACHED = TIMES | {
    "with `teacher.cache`": lambda step: 1,
    "for role in teacher, student": lambda step: 1,
    "for model in teacher, student": lambda step: 1,
}
EVERY = CACHED | {"with a cache of entries, in place of these two": lambda step: 1}
RECORDERS = """
from neoplug import Source, StatesSignal


def record(*hooks):
    '''Write the names of the hooks that are called into a file.'''
    with open("FILE", "a") as file:
        file.write(" ".join(hooks) + "\\n")


@dataclass(eq=False)
class Reads:
    @hookimpl
    def open_source(self):
        record("open_source")
        rows = [{"text": f"This is text number {number} of some length."} for number in range(24)]
        return Source(lambda: rows, lambda: 1)


@dataclass(eq=False)
class Loads:
    @hookimpl
    def load_kwargs(self):
        record("load_kwargs")
        return {}

    @hookimpl
    def after_load(self):
        record("after_load")


@dataclass(eq=False)
class Stores:
    serves = "full"

    @hookimpl
    def fit_cache(self):
        record("fit_cache")
        return {}

    @hookimpl
    def encode_teacher(self, states):
        record("encode_teacher")
        return {"states": states}

    @hookimpl
    def decode_teacher(self, stored, head):
        record("decode_teacher")
        return StatesSignal(torch.cat([part["states"] for part in stored]), head)


@dataclass(eq=False)
class Prepares:
    @hookimpl
    def prepare_student(self):
        record("prepare_student")


@dataclass(eq=False)
class Adapts:
    @hookimpl
    def add_adapter(self, model):
        record("add_adapter")
        for name, weight in model.named_parameters():
            weight.requires_grad_("norm" in name)
        return model

    @hookimpl
    def param_groups(self, model):
        record("param_groups")
        return [{"params": [weight for weight in model.parameters() if weight.requires_grad]}]

    @hookimpl
    def base_weights(self, model):
        record("base_weights")
        return model.state_dict()

    @hookimpl
    def save_adapter(self, model, path):
        record("save_adapter")
        torch.save({n: w.detach() for n, w in model.named_parameters() if w.requires_grad}, path / "norms.pt")

    @hookimpl
    def load_adapter(self, model, path):
        record("load_adapter")
        model.load_state_dict(torch.load(path / "norms.pt"), strict=False)
        return model

    @hookimpl
    def merge_adapter(self, model):
        record("merge_adapter")
        return model


@dataclass(eq=False)
class Optimizes:
    @hookimpl
    def make_optimizer(self, groups):
        record("make_optimizer")
        return torch.optim.SGD(groups)


@dataclass(eq=False)
class Stops:
    @hookimpl
    def should_stop(self):
        record("should_stop")


@dataclass(eq=False)
class Tracks:
    @hookimpl
    def open_tracker(self):
        record("open_tracker")

    @hookimpl
    def on_log(self):
        record("on_log")

    @hookimpl
    def on_measured(self):
        record("on_measured")

    @hookimpl
    def close_tracker(self):
        record("close_tracker")


@dataclass(eq=False)
class Schedules:
    @hookimpl
    def rate(self):
        record("rate")
        return 1.0


@dataclass(eq=False)
class Open:
    @hookimpl
    def token_loss(self, student, labels):
        record("token_loss")
        return -student.gather(-1, labels[:, None])[:, 0]


@dataclass(eq=False)
class Closed(Open):
    @hookimpl
    def token_gradient(self, student, teacher):
        record("token_gradient")
        return student.mean(-1), torch.zeros_like(student)


@dataclass(eq=False)
class Weighs:
    @hookimpl
    def token_weight(self, labels):
        record("token_weight")
        return torch.ones(len(labels))


@dataclass(eq=False)
class Treats:
    @hookimpl
    def check(self):
        record("check")
        return []

    @hookimpl
    def edit_documents(self, documents):
        record("edit_documents")
        return documents

    @hookimpl
    def edit_batch(self):
        record("edit_batch")

    @hookimpl
    def penalty(self, model):
        record("penalty")
        return sum(weight.sum() for weight in model.parameters() if weight.requires_grad)

    @hookimpl
    def on_step_end(self):
        record("on_step_end")

    @hookimpl
    def on_evaluate(self):
        record("on_evaluate")
        return {}

    @hookimpl
    def on_save(self):
        record("on_save")

    @hookimpl
    def on_train_end(self):
        record("on_train_end")

    def state_dict(self):
        record("state_dict")
        return {}

    def load_state_dict(self, state):
        record("load_state_dict")
"""


def lines():
    """Return the lines of the pseudocode without comments: (indentation, code)."""
    code = inspect.getdoc(hookspecs).partition("\n\n")[2].partition("\n\n")[0]
    return [(len(line) - len(line.lstrip()), re.split(r"\s{3,}", line.strip())[0]) for line in code.splitlines()]


def expand(block, step=0, times=TIMES):
    """Return the hooks that lines of pseudocode call, in order; `times` has how often each block runs."""
    called = []
    while block:
        (indent, code), block = block[0], block[1:]
        inner = []
        while block and block[0][0] > indent:
            inner, block = [*inner, block[0]], block[1:]
        called += re.findall(rf"\b({'|'.join(NAMES)})\(", code)
        if inner:
            for number in range(int(times[code.removesuffix(":")](step))):
                called += expand(inner, number + 1 if code.startswith("for step") else step, times)
    return called


def test_a_block_is_expanded_as_often_as_it_runs():
    block = [(0, "check(recipe)"), (0, "for step in range(max_steps):"), (4, "penalty(model)")]
    block += [(4, "every save_steps, and after the last step:"), (8, "on_save(model)"), (0, "on_train_end(model)")]
    assert expand(block) == ["check", *["penalty", "penalty", "on_save"] * 2, "on_train_end"]


def test_every_hook_is_in_the_expansion():
    assert set(expand(lines(), times=EVERY)) == set(NAMES)


@pytest.mark.parametrize("cache", [{}, {"cache": {"./recorders.py:Stores": {}}}], ids=["a model", "a cache"])
def test_a_run_calls_its_hooks_in_the_order_of_the_pseudocode(lab, monkeypatch, cache):
    """Records are decoded in a thread, so only how often is compared."""
    monkeypatch.setenv("NEOPLUG_HOME", str(lab.folder / "home"))
    log = lab.folder / "calls.txt"
    lab.plugin("recorders", RECORDERS.replace("FILE", str(log)))
    run = lab.run(
        "run",
        teacher={"load": {"./recorders.py:Loads": {}}, **cache},
        student={"load": {"./recorders.py:Loads": {}}, "prepare": {"./recorders.py:Prepares": {}}},
        adapter={"./recorders.py:Adapts": {}},
        optimizer={"./recorders.py:Optimizes": {}},
        schedule={"./recorders.py:Schedules": {}},
        stops={"./recorders.py:Stops": {}},
        loss={"./recorders.py:Open": {}, "./recorders.py:Closed": {}},
        token_weights={"./recorders.py:Weighs": {}},
        treatments={"./recorders.py:Treats": {}},
        trackers={"./recorders.py:Tracks": {}},
        train={
            "max_steps": STEPS, "gradient_accumulation_steps": MICRO_BATCHES, "save_steps": SAVE_STEPS,
            "per_device_train_batch_size": 1,
        },
        evaluate={"eval_steps": EVAL_STEPS},
        data={"source": {"./recorders.py:Reads": {}}},
    )  # fmt: skip
    directory = RunDir.open(run.path)
    standalone_model(directory, base_of(directory, Consent()), Consent())
    preview(recipes.load(run.path / "recipe.yaml"), rows=1)
    called = Path(log).read_text(encoding="utf-8").split()
    expected = expand(lines(), times=CACHED if cache else TIMES)
    if cache:
        expected.remove("cache_folder")
    in_thread = "decode_teacher"
    assert [hook for hook in called if hook != in_thread] == [hook for hook in expected if hook != in_thread]
    assert called.count(in_thread) == expected.count(in_thread)


FAILS = """
@dataclass(eq=False)
class Fails:
    kind: str

    @hookimpl
    def on_save(self, path):
        if self.kind == "on_save":
            (path / "missing" / "file.txt").write_text("")

    @hookimpl
    def on_step_end(self):
        return {}

    def state_dict(self):
        return {}[self.kind] if self.kind == "state_dict" else {"path": Path("x")} if self.kind == "unloadable" else {}

    def load_state_dict(self, state):
        if self.kind == "load_state_dict":
            raise RuntimeError("no")
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("on_save", "failed in `on_save`"),
        ("state_dict", "failed in `state_dict`"),
        ("load_state_dict", "failed in `load_state_dict`"),
        ("unloadable", "state_dict of .* cannot be read back"),
    ],
)
def test_saving_is_tried_before_the_first_step(lab, kind, message):
    lab.plugin("fails", FAILS)
    with pytest.raises(RunError, match=message):
        lab.run("run", probes={"./fails.py:Fails": {"kind": kind}})
    assert not (lab.folder / "run" / "metrics.jsonl").exists()
    assert not lab.at("run").hidden_leftovers
