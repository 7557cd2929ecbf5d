"""Answers of hooks: each hook's rule refuses what the core would lose or misread, by plugin, hook, file and line."""

import inspect
import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from neoplug import Problem, hookimpl
from neoplug.answers.checks import _CHECKS, WORDS
from neoplug.answers.rules import Returns
from neoplug.data.batch import Document, collate
from neoplug.errors import RunError
from neoplug.models.vocabulary import Vocabulary
from neoplug.registry import SPECS, Plugins

N, V = 4, 6
LAYER = nn.Linear(3, 2)
ITSELF = []
ITSELF.append(ITSELF)


def plugins(hook, function):
    """Return the plugins of a run with one plugin, whose hook is this function."""
    section = {"token_loss": "loss", "token_gradient": "loss", "token_weight": "token_weights"}.get(hook, "probes")
    cls = dataclass(eq=False)(type("Odd", (), {hook: hookimpl(function)}))
    return Plugins({section: {"odd": cls()}})


def call(hook, answer, **arguments):
    """Return the answer of a plugin as the core reads it."""

    def returning(self):
        return answer

    return plugins(hook, returning).each(hook, **arguments)["odd"]


def token_arguments():
    student = torch.randn(N, V, requires_grad=True).log_softmax(-1)
    return {"student": student, "teacher": student.detach().clone(), "labels": torch.arange(N), "progress": 0.0}


def groups(*parameters):
    return [{"params": list(parameters), "lr": 0.1}]


REFUSED = [
    ("check", 3, "an int"),
    ("check", ["text"], "a str"),
    ("check", "text", "a str"),
    ("prepare_student", LAYER, "a Linear"),
    ("after_load", LAYER, "a Linear"),
    ("on_save", "file", "a str"),
    ("load_kwargs", ["dtype"], "a list"),
    ("load_kwargs", {1: 2}, "an int"),
    ("add_adapter", None, "None"),
    ("add_adapter", [LAYER], "a list"),
    ("add_adapter", 1.0, "a float"),
    ("param_groups", None, "None"),
    ("param_groups", LAYER.parameters, "a method"),
    ("param_groups", [LAYER.weight], r"shape \[2, 3\]"),
    ("param_groups", [{"lr": 0.1}], "a dict"),
    ("param_groups", [{"params": 3}], "an int"),
    ("param_groups", [{"params": [1.0]}], "a float"),
    ("param_groups", [{"params": [("weight", LAYER.weight)]}], "a tuple"),
    ("param_groups", [{"params": [LAYER.weight], "lr": "0.1"}], "a str"),
    ("make_optimizer", None, "None"),
    ("make_optimizer", 0.1, "a float"),
    ("make_optimizer", [torch.optim.SGD([LAYER.weight])], "a list"),
    ("make_optimizer", torch.optim.SGD([LAYER.weight]), "lacks 1 of the 2 tensors"),
    ("make_optimizer", torch.optim.SGD([*LAYER.parameters(), torch.ones(2)]), "has 1 tensors which are not"),
    ("rate", None, "None"),
    ("rate", -0.1, "with -0.1, where a finite number of at least 0"),
    ("rate", float("nan"), "with nan"),
    ("rate", float("inf"), "with inf"),
    ("rate", "0.1", "a str"),
    ("rate", [1.0], "a list"),
    ("rate", torch.ones(2), r"shape \[2\]"),
    ("should_stop", "", "a str, where a sentence or None"),
    ("should_stop", True, "a bool"),
    ("should_stop", ["a reason"], "a list"),
    ("penalty", None, "None"),
    ("penalty", 0.5, "a float"),
    ("penalty", [LAYER.weight.sum()], "a list"),
    ("penalty", LAYER.weight, r"shape \[2, 3\]"),
    ("penalty", torch.tensor(0.5), "without a gradient"),
    ("penalty", torch.tensor(1), "int64"),
    ("on_step_end", 3, "an int"),
    ("on_step_end", {"norms": torch.ones(3)}, r"the value `norms`, which is shape \[3\]"),
    ("on_step_end", {"norms": [1.0]}, "the value `norms`, which is a list"),
    ("on_step_end", {"norms": np.ones(3)}, r"shape \[3\]"),
    ("on_step_end", {"phase": "warm"}, "a str"),
    ("on_step_end", {"phase": None}, "None"),
    ("on_step_end", {3: 1.0}, "an int"),
    ("on_evaluate", None, "None"),
    ("on_evaluate", torch.ones(2), r"shape \[2\]"),
    ("on_evaluate", {"ece": torch.ones(1)}, r"the value `ece`, which is shape \[1\]"),
    ("on_evaluate", {"a": {"b": [1, np.ones(2)]}}, r"the value `a\.b\.1`, which is shape \[2\] of float64"),
    ("on_evaluate", {"a": {1, 2}}, "a set"),
    ("on_evaluate", {"a": 1j}, "a complex"),
    ("on_evaluate", {"a": np.datetime64("2020-01-01")}, "datetime64"),
    ("on_evaluate", {"a": np.longdouble(1)}, "float128|longdouble"),
    ("on_evaluate", {"a": Fraction(1, 2)}, "a Fraction"),
    ("on_evaluate", {"a": Path("here")}, "Path"),
    ("on_evaluate", {(1, 2): 3}, "a tuple"),
    ("on_evaluate", {"a": ITSELF}, "levels"),
    ("base_weights", None, "None"),
    ("base_weights", {}, "a dict"),
    ("base_weights", {"weight": [1.0]}, "the value `weight`, which is a list"),
    ("merge_adapter", None, "None"),
    ("merge_adapter", LAYER, "a Linear"),
    ("load_adapter", None, "None"),
    ("load_adapter", {"a": LAYER}, "a dict"),
    ("save_adapter", None, "wrote no file into `path`"),
    ("save_adapter", {"a": torch.ones(1)}, "a dict"),
    ("token_loss", None, "None"),
    ("token_loss", torch.ones(N), "without a gradient"),
    ("token_loss", torch.ones(N, dtype=torch.int64), "int64"),
    ("token_loss", torch.ones(1, requires_grad=True), r"shape \[1\]"),
    ("token_loss", torch.ones(N, 1, requires_grad=True), r"shape \[4, 1\]"),
    ("token_loss", torch.ones(N, dtype=torch.complex64, requires_grad=True), "complex64"),
    ("token_loss", torch.ones(N, requires_grad=True, device="meta"), "on meta"),
    ("token_loss", [0.5] * N, "a list"),
    ("token_gradient", torch.ones(N), r"shape \[4\]"),
    ("token_gradient", (torch.ones(N),), "a tuple"),
    ("token_gradient", (torch.ones(N), None), "None"),
    ("token_gradient", (torch.ones(N), torch.ones(N)), r"shape \[4\] of float32, where a tensor of shape \[4, 6\]"),
    ("token_gradient", (torch.ones(1), torch.ones(N, V)), r"shape \[1\]"),
    ("token_gradient", (torch.ones(N), torch.ones(N, V, dtype=torch.int32)), "int32"),
    ("token_weight", None, "None"),
    ("token_weight", 1.0, "a float"),
    ("token_weight", torch.ones(N, 1), r"shape \[4, 1\]"),
    ("token_weight", torch.ones(N, dtype=torch.complex64), "complex64"),
    ("on_train_end", {"more": 1}, "a dict"),
]


def arguments_of(hook, folder):
    more = {
        "token": token_arguments(),
        "make_": {"groups": groups(*LAYER.parameters())},
        "save_": {"path": folder},
        "on_tr": {"result": {"steps": 3}},
    }
    return more.get(hook[:5], {})


@pytest.mark.parametrize(
    ("hook", "answer", "fault"), REFUSED, ids=[f"{hook}-{i}" for i, (hook, *_) in enumerate(REFUSED)]
)
def test_an_answer_that_breaks_the_rule_is_refused_with_plugin_hook_and_place(hook, answer, fault, tmp_path):
    with pytest.raises(RunError, match=rf"the plugin `odd` .*{fault}") as caught:
        call(hook, answer, **arguments_of(hook, tmp_path))
    what, place, why, fix = str(caught.value).splitlines()
    lines, first = inspect.getsourcelines(call)
    line = first + next(number for number, text in enumerate(lines) if "def returning" in text)
    assert place == f"at: {__file__}:{line}"
    assert f"`{hook}`" in what
    assert (why.partition(" ")[0], fix.partition(" ")[0]) == ("why:", "fix:")
    assert why[5:]
    assert fix[5:]


@pytest.mark.parametrize(("answer", "fault"), [(3, "answered `on_train_end` with an int"), (None, "KeyError: 'gone'")])
def test_the_place_of_a_decorated_hook_is_in_the_plugins_file(answer, fault):
    @torch.no_grad()
    def decorated(self, result):
        return answer or result["gone"]

    with pytest.raises(RunError, match=fault) as caught:
        plugins("on_train_end", decorated).each("on_train_end", model=None, result={})
    _, first = inspect.getsourcelines(decorated)
    line = first + (1 if answer else 2)  # the `def`, or the line that fails
    assert f"at: {__file__}:{line}" in str(caught.value)


@pytest.mark.parametrize("hook", SPECS)
def test_a_rule_stands_next_to_each_specification(hook):
    rule = SPECS[hook].returns
    assert isinstance(rule, Returns)
    assert rule.kind in _CHECKS
    assert set(rule.read_only) <= set(inspect.signature(SPECS[hook]).parameters)


def test_no_check_is_without_a_hook():
    assert {SPECS[hook].returns.kind for hook in SPECS} == set(_CHECKS) == set(WORDS)


def test_probes_are_read_as_json_holds_them():
    answer = {
        "tensor": torch.tensor(0.5), "half": torch.tensor(0.5, dtype=torch.bfloat16), "count": torch.tensor(3),
        "numpy": np.float32(0.25), "whole": np.int64(7), "yes": np.bool_(True), "array": np.array(1.5),
        "pair": (1, None), "deep": {1: [torch.tensor(2.0), "text"]},
    }  # fmt: skip
    read = call("on_evaluate", answer)
    assert json.loads(json.dumps(read, allow_nan=False)) == read
    assert read == {
        "tensor": 0.5, "half": 0.5, "count": 3, "numpy": 0.25, "whole": 7, "yes": True, "array": 1.5,
        "pair": [1, None], "deep": {"1": [2.0, "text"]},
    }  # fmt: skip


def test_a_probe_that_goes_on_to_use_its_answer_changes_no_earlier_result():
    answer = {"seen": [1]}
    read = call("on_evaluate", answer)
    answer["seen"].append(2)
    assert read == {"seen": [1]}


def test_metrics_that_a_plugin_adds_to_in_place_keep_the_value_of_their_step():
    total = torch.zeros(())
    read = call("on_step_end", {"total": total, "one": torch.ones(1, 1), "numpy": np.float64(2)})
    total += 5
    assert (float(read["total"]), float(read["one"]), read["numpy"]) == (0.0, 1.0, 2.0)
    assert call("on_step_end", None) == {}


def test_right_answers_pass():
    weight, bias = LAYER.parameters()
    optimizer = torch.optim.SGD([weight, bias])
    assert call("make_optimizer", optimizer, groups=groups(weight, bias)) is optimizer
    assert call("add_adapter", LAYER) is LAYER
    assert call("penalty", (2 * bias.sum()).reshape(1)).shape == ()
    assert call("rate", torch.tensor(0.5)) == call("rate", np.float32(0.5)) == 0.5
    assert call("should_stop", None) is None
    assert call("check", None) == []
    assert call("check", (Problem("no"),)) == [Problem("no")]
    assert call("load_kwargs", None) == {}
    assert call("param_groups", ({"params": iter([weight]), "lr": torch.tensor(0.1)},))[0]["params"] == [weight]
    assert call("param_groups", [{"params": bias}])[0]["params"] == [bias]
    mask = torch.tensor([True, False, True, True])
    assert call("token_weight", mask, **token_arguments()) is mask


def test_groups_may_be_yielded():
    def param_groups(self, learning_rate):
        yield {"params": [LAYER.weight], "lr": learning_rate}

    (group,) = plugins("param_groups", param_groups).one("param_groups", model=LAYER, learning_rate=0.5)
    assert (group["params"], group["lr"]) == ([LAYER.weight], 0.5)


def test_a_loss_is_checked_for_its_gradient_only_where_one_is_computed():
    def token_loss(self, student):
        return -student.sum(-1)

    loss, arguments = plugins("token_loss", token_loss), token_arguments()
    assert loss.one("token_loss", **arguments).requires_grad
    with torch.no_grad():
        loss.one("token_loss", **arguments)


@pytest.mark.parametrize("name", ["student", "teacher", "labels"])
@pytest.mark.parametrize("hook", ["token_gradient", "token_weight"])
def test_a_hook_that_writes_into_its_inputs_is_refused(hook, name):
    def writes(self, student, teacher, labels):
        {"student": student, "teacher": teacher, "labels": labels}[name].add_(1)
        return (torch.ones(N), torch.ones(N, V)) if hook == "token_gradient" else torch.ones(N)

    arguments = token_arguments()
    arguments["student"] = arguments["student"].detach()
    with pytest.raises(RunError, match=f"the plugin `odd` in `{hook}` wrote into `{name}`"):
        plugins(hook, writes).one(hook, **arguments)


def train_end(change):
    def on_train_end(self, result):
        change(result)

    result = {"steps": 3, "after": {"probes": {"x": 1.0}}}
    plugins("on_train_end", on_train_end).each("on_train_end", model=None, result=result, reserved={"seconds"})
    return result


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda result: result.update(steps=4), "changed `steps`"),
        (lambda result: result.pop("steps"), "changed `steps`"),
        (lambda result: result["after"]["probes"].update(x=2.0), "changed `after`"),
        (lambda result: result.update(seconds=1.0), "added `seconds`"),
        (lambda result: result.update(more=torch.ones(2)), r"the value `more`, which is shape \[2\]"),
        (lambda result: result.update({3: 1}), "an int"),
    ],
)
def test_a_result_that_a_plugin_may_not_write_is_refused(change, fault):
    with pytest.raises(RunError, match=rf"the plugin `odd` .*{fault}"):
        train_end(change)


def test_keys_added_to_the_result_are_read_as_json_holds_them():
    added = train_end(lambda result: result.update(more=torch.tensor(2.5), pair=(1, np.int32(2))))
    assert (added["more"], added["pair"], added["steps"]) == (2.5, [1, 2], 3)


def batch():
    """Return two documents of 5 and 4 tokens, with answer tokens at 2, 3, 4 and at 7, 8."""
    documents = [
        Document(np.array([1, 2, 3, 4, 5]), np.array([0, 0, 1, 1, 1], dtype=bool), 10),
        Document(np.array([6, 7, 8, 9]), np.array([0, 0, 1, 1], dtype=bool), 11),
    ]
    return collate(documents)


def edited(change, keeps_text=False, ids=None):
    def edit_batch(self, batch):
        return change(batch)

    one = batch()
    vocabulary = Vocabulary(20 if ids is None else len(ids), ids)
    arguments = {"batch": one, "progress": 0.0, "vocabulary": vocabulary, "keeps_text": keeps_text}
    plugins("edit_batch", edit_batch).each("edit_batch", **arguments)
    return one


def setting(**values):
    def change(batch):
        for name, value in values.items():
            setattr(batch, name, value(batch))

    return change


def shorten(keep):
    return setting(**{name: lambda b, name=name: getattr(b, name)[keep] for name in ("positions", "labels", "rows")})


BAD_EDITS = [
    (
        lambda batch: batch.to("cpu"),
        "answered `edit_batch` with a Batch, where nothing is read",
    ),
    (setting(labels=lambda b: b.labels[:-1]), "left 5 positions, 4 labels, 5 rows"),
    (setting(labels=lambda b: b.labels.float()), r"left shape \[5\] of float32 in `labels`"),
    (setting(labels=lambda b: b.labels.tolist()), "left a list in `labels`"),
    (setting(labels=lambda b: b.labels[None]), r"left shape \[1, 5\]"),
    (setting(labels=lambda b: torch.full_like(b.labels, -100)), "left -100 in `labels`, which is no token"),
    (setting(labels=lambda b: torch.full_like(b.labels, 20)), "left 20 in `labels`, which is no token"),
    (setting(input_ids=lambda b: b.input_ids + 15), "left 21 in `input_ids`|left 20 in `input_ids`"),
    (setting(input_ids=lambda b: b.input_ids[:-1]), "left `lengths` that add up to 9 in a batch of 8 tokens"),
    (setting(lengths=lambda b: [5, 5]), "left `lengths` that add up to 10 in a batch of 9 tokens"),
    (setting(lengths=lambda b: [9, 0]), "left a list in `lengths`"),
    (setting(lengths=lambda b: torch.tensor(b.lengths)), "in `lengths`"),
    (setting(positions=lambda b: b.positions + 3), "left position 9 in a batch of 9 tokens"),
    (setting(positions=lambda b: b.positions - 2), "left position -1 in a batch of 9 tokens"),
    (setting(positions=lambda b: b.positions.flip(0)), "left `rows` that are not those of `positions`"),
    (setting(rows=lambda b: b.rows + 5), "left row 15 in `rows`"),
    (setting(rows=lambda b: b.rows.flip(0)), "left `rows` that are not those of `positions`"),
]


@pytest.mark.parametrize(("change", "fault"), BAD_EDITS, ids=range(len(BAD_EDITS)))
def test_an_edited_batch_that_would_be_misread_is_refused(change, fault):
    with pytest.raises(RunError, match=fault):
        edited(change)


@pytest.mark.parametrize(
    "change",
    [
        setting(positions=lambda b: b.positions - 1),
        setting(  # the first document is dropped: position 6 is now position 1
            input_ids=lambda b: b.input_ids[5:], lengths=lambda b: [4], labels=lambda b: b.labels[3:],
            rows=lambda b: b.rows[3:], positions=lambda b: b.positions[3:] - 5,
        ),
    ],
)  # fmt: skip
def test_positions_of_other_tokens_are_refused_where_token_weights_read_them(change):
    edited(change)
    with pytest.raises(RunError, match="token weights read the answer tokens of the original text"):
        edited(change, keeps_text=True)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: None,
        lambda batch: batch,  # the same batch
        shorten(slice(1, None, 2)),
        shorten(slice(0, 0)),
        shorten(torch.tensor([4, 3, 2, 1, 0])),
        setting(labels=lambda b: torch.full_like(b.labels, 19)),
        setting(input_ids=lambda b: torch.zeros_like(b.input_ids)),
        setting(labels=lambda b: b.labels.fill_(7)),  # in place
    ],
)
def test_edits_that_keep_the_answer_tokens_of_the_text_pass(change):
    edited(change, keeps_text=True)


def test_a_token_that_the_models_do_not_share_is_refused_and_one_of_the_text_is_not():
    shared = torch.tensor([3, 4, 5, 8, 9, 12])
    edited(setting(labels=lambda b: torch.full_like(b.labels, 12)), ids=shared)
    with pytest.raises(RunError, match="left 11 in `labels`, which is no token"):
        edited(setting(labels=lambda b: torch.full_like(b.labels, 11)), ids=shared)
