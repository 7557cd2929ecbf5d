"""Results and states of real runs conform to the JSON schema of their types, and are read back unchanged."""

import json
import re
from pathlib import Path

import pytest

from neoplug.errors import DamageError, Interrupted, PluginError
from neoplug.runs.directory import RunDir
from neoplug.runs.result import RunResult, RunState
from neoplug.training import checkpoint

PARTS = """
@dataclass(eq=False)
class Ends:
    '''Measures 1 after every step; ends the run at a step, by an error or by a signal.'''

    at: int = 0
    how: str = ""

    @hookimpl
    def on_evaluate(self):
        return {"value": 1.0}

    @hookimpl
    def on_step_end(self, step):
        if step == self.at and self.how == "error":
            raise OSError("tripped")
        if step == self.at:
            signal.raise_signal(signal.SIGINT)

    @hookimpl
    def on_train_end(self, result):
        result["added"] = [1, None]
"""
JSON = {"object": dict, "array": list, "string": str, "integer": int, "number": int | float, "null": type(None)}


def conforms(value, schema, root):
    """Return whether a value has a schema, of the keywords that pydantic writes for these types; others are refused."""
    if "$ref" in schema:
        return conforms(value, root["$defs"][schema["$ref"].rpartition("/")[2]], root)
    if "anyOf" in schema:
        return any(conforms(value, one, root) for one in schema["anyOf"])
    known = {"type", "enum", "const", "properties", "required", "additionalProperties", "items"}
    assert schema.keys() <= known | {"title", "description", "default", "$defs"}
    if isinstance(value, bool) or ("type" in schema and not isinstance(value, JSON[schema["type"]])):
        return False
    if value not in schema.get("enum", [value]) or value != schema.get("const", value):
        return False
    if isinstance(value, list):
        return all(conforms(one, schema.get("items", {}), root) for one in value)
    if not isinstance(value, dict):
        return True
    properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    return set(schema.get("required", ())) <= value.keys() and all(
        others is True or conforms(inner, others, root)
        if key not in properties
        else conforms(inner, properties[key], root)
        for key, inner in value.items()
    )


@pytest.fixture(scope="module")
def runs(module_lab):
    """Return a run for each way to end, after or in the second step."""
    lab = module_lab
    lab.plugin("ends", PARTS)
    rule = {"metric_for_best_model": "probes../ends.py:Ends.value", "early_stopping_patience": 1, "eval_steps": 1}
    ways = {
        "completed": ({}, {"loss": {"cross_entropy": {}, "forward_kl": {"calibrate": "cross_entropy"}}}),
        "stopped_early": ({}, {"evaluate": {**rule, "greater_is_better": True}, "train": {"max_steps": 4}}),
        "without_teacher": ({}, {"teacher": None, "loss": {"cross_entropy": {}}}),
        "failed": ({"at": 2, "how": "error"}, {}),
        "interrupted": ({"at": 2, "how": "signal"}, {}),
    }
    for way, (options, sections) in ways.items():
        train = {"max_steps": 2, "save_steps": 1, "gradient_accumulation_steps": 1, **sections.pop("train", {})}
        recipe = lab.recipe(way, probes={"./ends.py:Ends": options}, train=train, **sections)
        if way in ("failed", "interrupted"):
            with pytest.raises(PluginError if way == "failed" else Interrupted):
                lab.run(way, recipe)
        else:
            lab.run(way, recipe)
    return {way: lab.at(way) for way in ways}


@pytest.mark.parametrize("way", ["completed", "stopped_early", "without_teacher", "failed", "interrupted"])
def test_a_result_conforms_to_its_schema_and_is_read_back_unchanged(runs, way):
    result, schema = runs[way].result, RunResult.model_json_schema()
    assert conforms(result, schema, schema)
    assert RunDir.open(runs[way].path).result.as_dict() == result
    assert list(result)[:2] == ["format", "status"]
    assert result["status"] == (way if way in ("failed", "interrupted") else "completed")
    assert ("reason" in result) == (way in ("failed", "interrupted"))
    assert ("teacher" in result) == (way != "without_teacher")
    assert ("weights" in result) == (way == "completed")
    assert ("stopped_early" in result) == ("best" in result) == ("evaluations" in result) == (way == "stopped_early")
    assert ("after" in result) == ("added" in result) == ("reason" not in result)


@pytest.mark.parametrize("way", ["completed", "stopped_early", "without_teacher", "failed", "interrupted"])
def test_a_state_conforms_to_its_schema_and_has_what_the_result_has(runs, way):
    run, schema = runs[way], RunState.model_json_schema()
    newest = checkpoint.latest(run.path / "checkpoints")
    state = json.loads((newest / "state.json").read_text())
    assert conforms(state, schema, schema)
    assert state["format"] == 1
    assert RunState.read(state, newest).as_dict() == {key: value for key, value in state.items() if key != "format"}
    assert state["step"] == run.steps_saved[-1]
    shared = state.keys() & run.result.keys() - {"seconds", "format", "sample"}
    assert {key: state[key] for key in shared} == {key: run.result[key] for key in shared}
    assert {"before"} <= shared


@pytest.mark.parametrize(
    ("change", "named"),
    [({"status": "done"}, "status"), ({"steps": "many"}, "steps"), ({"best": {"step": 1}}, "best.metric")],
)
def test_a_changed_result_is_refused_with_file_and_key(runs, tmp_path, change, named):
    file = tmp_path / "result.json"
    with pytest.raises(DamageError, match=re.escape(f"{file} is not what this neoplug writes: `{named}`")):
        RunResult.read(runs["completed"].result | change, Path(file))
    schema = RunResult.model_json_schema()
    assert not conforms(runs["completed"].result | change, schema, schema)
