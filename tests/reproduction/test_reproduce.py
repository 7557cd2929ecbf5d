"""`neoplug reproduce`: what differs is named, the replay is compared step by step, and the exit code follows.

Each thing that a run depends on is changed in turn; the first deviation is computed here from the two metrics.jsonl.
"""

import json
import math
import re
import shutil

import pytest
import yaml
from safetensors.torch import load_file, save_file
from scipy import stats

from neoplug.recipe.reference import Target

CLOCK = ("seconds", "tokens_per_second", "peak_memory_bytes")


def without_clock(steps):
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in steps]


def kinds(answer):
    return {one["kind"] for one in answer.json["differences"]}


def test_a_replay_on_the_same_stack_is_bit_equal(original, command, tmp_path):
    answer = command("reproduce", original.run, "--output", tmp_path / "again", "--json")
    assert answer.code == 0
    assert answer.json["equal"] is True
    assert answer.json["differences"] == []
    assert answer.json["comparison"] == {"steps": 4, "equal": 4, "first": None, "largest": None}
    again = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    assert without_clock(again) == without_clock(original.steps)
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (original.run / weights).read_bytes()


def another_row(original):
    file = original.folder / "chat.jsonl"
    file.write_text(file.read_text().replace("It is 8.", "It is 9.", 1))
    return "data"


def another_bit(original):
    file = original.folder / "student" / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if "q_proj" in name)
    weights[name].view(-1)[0] *= 1.5
    save_file(weights, file, {"format": "pt"})
    return "model"


def another_plugin(original):
    file = original.folder / "own.py"
    file.write_text(file.read_text().replace("0.5", "0.25"))
    return "plugin"


def another_seed(original):
    original.write(recipe=original.recipe | {"seed": 1})
    return "recipe"


def another_rate(original):
    recipe = original.recipe
    recipe["train"]["learning_rate"] = 0.011
    original.write(recipe=recipe)
    return "recipe"


@pytest.mark.parametrize("change", [another_row, another_bit, another_plugin, another_seed, another_rate])
def test_what_was_changed_is_named_and_nothing_is_tolerated(original, command, tmp_path, change):
    kind = change(original)
    trust = ("--trust", original.folder / "own.py")
    page = tmp_path / "page.html"
    dry = command("reproduce", original.run, "--dry-run", "--json", "--report", page, *trust)
    assert f"another {kind} was read" in page.read_text()
    assert (dry.code, kinds(dry), dry.json["tolerance"]) == (1, {kind}, None)
    answer = command("reproduce", original.run, "--output", tmp_path / "again", "--json", *trust)
    assert (answer.code, kinds(answer)) == (1, {kind})
    again = [json.loads(line) for line in (tmp_path / "again" / "metrics.jsonl").read_text().splitlines()]
    pairs = list(zip(without_clock(original.steps), without_clock(again), strict=True))
    assert answer.json["comparison"]["equal"] == sum(before == now for before, now in pairs)
    first = next((number for number, (before, now) in enumerate(pairs, 1) if before != now), "after")
    assert answer.json["comparison"]["first"]["step"] == first
    assert f"another {kind}" in answer.json["verdict"]


def test_a_deviation_is_within_the_tolerance_of_what_differs(original, command, tmp_path):
    """The run's own metrics are changed: its first step by 1e-5 and by 1e-1 of the loss, with and without a reason."""
    steps, lock = original.steps, original.lock
    other = lock | {"versions": lock["versions"] | {"torch": "1.0"}}
    for number, (by, reason, code) in enumerate([(1e-5, other, 0), (0.1, other, 1), (1e-5, lock, 1)]):
        changed = [{**line, "loss": line["loss"] * (1 + by)} if line["step"] == 2 else line for line in steps]
        original.write(steps=changed, lock=reason)
        answer = command("reproduce", original.run, "--output", tmp_path / str(number), "--json")
        assert answer.code == code
        first = answer.json["comparison"]["first"]
        assert (first["step"], first["key"]) == (2, "loss")
        assert first["size"] == pytest.approx(by / (1 + by), rel=1e-6)
        assert answer.json["comparison"]["equal"] == 3
        assert kinds(answer) == ({"torch"} if reason is other else set())


@pytest.mark.parametrize(
    ("path", "value", "kind"),
    [
        (("computation", "threads"), 64, "threads"),
        (("computation", "dtypes", "teacher"), "bfloat16", "dtype"),
        (("hardware", "cpu"), "another", "processor"),
        (("platform",), "another", "processor"),
        (("versions", "peft"), "0.1", "library"),
        (("versions", "neoplug"), "0.0.1", "library"),
    ],
)
def test_each_difference_of_the_stack_has_its_kind_and_tolerance(original, command, path, value, kind):
    lock = original.lock
    holder = lock
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = value
    original.write(lock=lock)
    answer = command("reproduce", original.run, "--dry-run", "--json")
    assert answer.code == 0
    (one,) = answer.json["differences"]
    assert (one["kind"], one["what"], one["locked"]) == (kind, ".".join(path), value)
    assert one["may_change"]
    assert answer.json["tolerance"] > 0


@pytest.mark.parametrize(("value", "kinds_found"), [(None, set()), (True, {"recipe"})])
def test_a_key_that_the_run_did_not_know_is_no_difference_at_its_default(original, command, value, kinds_found):
    """Neither for a reproduction nor for `--resume`."""
    recipe, lock = original.recipe, original.lock
    for each in (recipe, lock["recipe"]):
        for key in ("shard", "ddp_timeout", "full_determinism"):
            del each["train"][key]
    original.write(lock=lock, recipe=recipe)
    given = recipe | {"train": recipe["train"] | ({"full_determinism": value} if value else {})}
    (original.folder / "again.yaml").write_text(yaml.safe_dump(given))
    resumed = command("run", original.folder / "again.yaml", "--output", original.run, "--resume")
    assert resumed.code == (2 if value else 0), resumed.err
    original.write(recipe=given)
    found = command("reproduce", original.run, "--dry-run", "--json")
    assert kinds(found) == kinds_found


def test_cores_memory_and_trackers_are_no_difference(original, command):
    lock = original.lock
    lock["hardware"] |= {"cores": 999, "memory_bytes": 1}
    lock["plugins"]["trackers.theirs"] = {"package": "their-package", "version": "1.0", "target": "theirs:Theirs"}
    original.write(lock=lock, recipe=original.recipe | {"trackers": {"theirs": {}}, "output_dir": "elsewhere"})
    assert command("reproduce", original.run, "--dry-run", "--json").json["differences"] == []


def test_fewer_ranks_train_on_the_same_rows(original, command, tmp_path):
    """The run is said to have had two processes with half the micro-batches: one process then has all of them."""
    lock, recipe = original.lock, original.recipe
    lock["computation"]["ranks"] = 2
    recipe["train"]["gradient_accumulation_steps"] = lock["recipe"]["train"]["gradient_accumulation_steps"] = 1
    original.write(lock=lock, recipe=recipe)
    answer = command("reproduce", original.run, "--output", tmp_path / "again", "--json")
    assert (answer.code, answer.json["equal"], kinds(answer)) == (0, True, {"ranks"})
    lock["computation"]["ranks"] = 3
    original.write(lock=lock)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        refused = command("reproduce", original.run, "--dry-run")
    assert (refused.code, "a number of processes that divides 3" in refused.err) == (2, True)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_the_interval_of_a_distribution_is_that_of_one_more_run(n):
    low, high = Target(mean=2.0, sd=0.25, n=n).interval
    expected = stats.t.interval(0.99, n - 1, loc=2.0, scale=0.25 * math.sqrt(1 + 1 / n))
    assert (low, high) == pytest.approx(expected)
    assert Target(value=2.0, tolerance=0.5).interval == (1.5, 2.5)


@pytest.mark.parametrize(("sd", "code"), [(0.1, 0), (0.001, 1)])
def test_a_replay_that_is_not_equal_is_judged_by_the_reference(original, command, tmp_path, sd, code):
    """The reference has another mean than what is measured, by 0.1; the first step's loss differs by much."""
    value = original.result["after"]["forward_kl"]
    target = {"mean": value + 0.1, "sd": sd, "n": 5}
    reference = {"claim": "<script>alert(1)</script>", "source": "a test", "targets": {"forward_kl": target}}
    steps = [line | {"loss": 99.0} for line in original.steps]
    original.write(recipe=original.recipe | {"reference": reference}, steps=steps)
    answer = command("reproduce", original.run, "--output", tmp_path / "again")
    assert answer.code == code
    low, high = stats.t.interval(0.99, 4, loc=value + 0.1, scale=sd * math.sqrt(1.2))
    side = "inside" if low <= value <= high else "outside"
    assert f"forward_kl is {value:.6g}, {side} {low:.6g} to {high:.6g}" in answer.out
    assert side == ("outside" if code else "inside")
    text = (tmp_path / "again" / "reproduction.html").read_text()
    assert f"{side} {low:.6g} to {high:.6g}" in text
    assert not re.search(r"<script|src=|href=|https?:", text)


def test_a_lock_alone_is_compared_and_judged_by_a_reference(original, command, tmp_path):
    alone = tmp_path / "alone" / "lock.json"
    alone.parent.mkdir()
    lock = original.lock
    lock["recipe"] = original.recipe
    alone.write_text(json.dumps(lock))
    dry = command("reproduce", alone, "--dry-run", "--json")
    assert (dry.code, dry.json["differences"]) == (0, [])
    untried = command("reproduce", alone, "--output", tmp_path / "none")
    assert untried.code == 2
    assert "nothing to compare a replay with" in untried.err
    target = {"value": original.result["after"]["cross_entropy"], "tolerance": 1e-9}
    lock["recipe"]["reference"] = {"claim": "c", "source": "s", "targets": {"cross_entropy": target}}
    alone.write_text(json.dumps(lock))
    assert command("reproduce", alone, "--output", tmp_path / "again").code == 0
    assert command("reproduce", original.run / "lock.json", "--dry-run").code == 0


def test_a_run_gives_no_consent_to_code(original, command):
    """The content of the plugin's file is not the one that was trusted when the run was started."""
    (original.folder / "own.py").write_text((original.folder / "own.py").read_text() + "# another\n")
    answer = command("reproduce", original.run, "--dry-run")
    assert answer.code == 2
    assert f"--trust {original.folder / 'own.py'}" in answer.err
    assert not (original.folder / "imported").exists()


def test_what_cannot_be_tried_exits_2(original, command, tmp_path):
    assert command("reproduce", tmp_path / "nothing").code == 2
    assert command("reproduce", original.folder, "--dry-run").code == 2
    with (original.run / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    damaged = command("reproduce", original.run, "--dry-run")
    assert (damaged.code, "metrics.jsonl" in damaged.err) == (2, True)
    original.write(result=original.result | {"status": "failed"}, steps=original.steps[:-1])
    assert "is not finished" in command("reproduce", original.run, "--dry-run").err
    original.write(result=original.result | {"status": "completed"})
    shutil.move(original.folder / "student", original.folder / "moved")
    missing = command("reproduce", original.run, "--dry-run")
    assert (missing.code, "there is no file or folder" in missing.err) == (2, True)
    found = command("reproduce", original.run, f"student.model={original.folder / 'moved'}", "--dry-run", "--json")
    assert (found.code, found.json["differences"]) == (0, [])


def test_a_run_of_an_older_neoplug_is_exported_and_resumed_but_not_reproduced(original, command, tmp_path):
    lock = {key: value for key, value in original.lock.items() if key not in ("recipe", "computation", "plugins")}
    original.write(lock=lock)
    assert command("export", original.run, tmp_path / "exported").code == 0
    assert command("run", original.run / "recipe.yaml", "--output", original.run, "--resume").code == 0
    (tmp_path / "lock.json").write_text(json.dumps(lock))
    for older in (original.run, tmp_path / "lock.json"):
        answer = command("reproduce", older, "--dry-run")
        assert (answer.code, "an older neoplug wrote it" in answer.err) == (2, True)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"format": 1}', "\x00", '{"format": 1, "recipe": [], "models": 3}',
    ],
)  # fmt: skip
def test_a_damaged_lock_exits_2(command, tmp_path, content):
    (tmp_path / "lock.json").write_text(content)
    answer = command("reproduce", tmp_path / "lock.json")
    assert answer.code == 2
    assert "Traceback" not in answer.err
