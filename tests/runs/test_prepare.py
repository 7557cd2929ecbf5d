"""Measured pruning in complete runs: computed once and shared by runs, and validated before weights are loaded."""

import pytest
from transformers import AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.export.merge import export

BOTH = {
    "prune_depth": {"num_hidden_layers": 3, "importance": "block_influence", "calibration_tokens": 200},
    "prune_width": {"num_key_value_heads": 1, "intermediate_size": 96, "calibration_tokens": 200},
}


@pytest.mark.slow
def test_runs_share_a_pruned_student(lab, tiny_teacher, monkeypatch):
    student = {"model": str(tiny_teacher), "prepare": BOTH}
    first = lab.run("first", student=student, train={"max_steps": 2})
    monkeypatch.setattr("neoplug.models.prepared._make", None)
    again = lab.run("again", student=student, train={"max_steps": 2})
    assert again.facts == first.facts
    assert again.adapter_bytes == first.adapter_bytes
    export(first.path, lab.folder / "out")
    config = AutoModelForCausalLM.from_pretrained(lab.folder / "out").config
    assert (config.num_hidden_layers, config.num_key_value_heads, config.num_attention_heads) == (3, 1, 2)
    assert (config.intermediate_size, config.head_dim) == (96, 16)


def test_all_sizes_that_do_not_fit_are_refused_with_their_lines(lab):
    prepare = {"prune_width": {"intermediate_size": 96, "num_attention_heads": 7}}
    with pytest.raises(RecipeError) as caught:
        lab.run("run", student={"prepare": prepare})
    assert {problem.path[-1] for problem in caught.value.problems} == {"num_attention_heads", "intermediate_size"}
    assert str(caught.value).count("recipe.yaml:") == 2
    assert not (lab.folder / "run").exists()
