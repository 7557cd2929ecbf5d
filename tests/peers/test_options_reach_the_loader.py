"""Soup validates `quantization: 4bit` and `init_strategy`, then loads the model without them."""

import json

import pytest

RECORDER = '''
"""Record how the models were loaded."""
import json
from dataclasses import dataclass
from pathlib import Path
from neoplug import hookimpl

@dataclass(eq=False)
class Recorder:
    file: str

    @hookimpl
    def after_load(self, model, role):
        facts = json.loads(Path(self.file).read_text()) if Path(self.file).exists() else {}
        layers = model.model.layers
        projection = layers[0].self_attn.q_proj
        facts[role] = {
            "class": type(projection).__name__,
            "nf4": getattr(getattr(projection.weight, "quant_state", None), "quant_type", None),
            "double": getattr(getattr(projection.weight, "quant_state", None), "nested", None),
            "attention": model.config._attn_implementation,
            "norms": str(model.model.norm.weight.dtype),
            "layers": len(layers),
        }
        Path(self.file).write_text(json.dumps(facts))
'''


def loaded(run, tmp_path, name, **sections):
    (tmp_path / "recorder.py").write_text(RECORDER)
    file = tmp_path / f"{name}.json"
    run(name, loss={"forward_kl": {}}, treatments={"./recorder.py:Recorder": {"file": str(file)}}, **sections)
    return json.loads(file.read_text())


@pytest.mark.slow
def test_the_options_of_both_models_are_applied(run, tmp_path, tiny_student, tiny_teacher):
    pruned = {"prepare": {"prune_depth": {"num_hidden_layers": 2}}, "load": {"nf4": {"use_double_quant": False}}}
    found = loaded(
        run, tmp_path, "one",
        student={"model": str(tiny_teacher), "dtype": "bfloat16", "attn_implementation": "eager", **pruned},
        teacher={"model": str(tiny_student), "dtype": "float32"},
        train={"max_steps": 1},
    )  # fmt: skip
    assert found["student"] == {
        "class": "Linear4bit", "nf4": "nf4", "double": False, "attention": "eager", "norms": "torch.bfloat16",
        "layers": 2,
    }  # fmt: skip
    assert found["teacher"] == {
        "class": "Linear", "nf4": None, "double": None, "attention": "sdpa", "norms": "torch.float32", "layers": 2
    }  # fmt: skip


@pytest.mark.slow
def test_quantising_the_teacher_does_not_quantise_the_student(run, tmp_path, tiny_student, tiny_teacher):
    found = loaded(
        run, tmp_path, "other",
        student={"model": str(tiny_student), "dtype": "float32"},
        teacher={"model": str(tiny_teacher), "dtype": "bfloat16", "attn_implementation": "eager", "load": {"nf4": {}}},
        train={"max_steps": 1},
    )  # fmt: skip
    assert (found["student"]["class"], found["student"]["attention"]) == ("Linear", "sdpa")
    assert found["teacher"] == {
        "class": "Linear4bit", "nf4": "nf4", "double": True, "attention": "eager", "norms": "torch.bfloat16",
        "layers": 4,
    }  # fmt: skip
