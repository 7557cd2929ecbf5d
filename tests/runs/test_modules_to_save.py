"""Modules trained in full next to low-rank matrices: their gradient, and how plain peft and an export load them."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from neoplug.errors import RecipeError
from neoplug.export.merge import export

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # raised within peft
STEP = {"max_steps": 1, "learning_rate": 0.1, "max_grad_norm": 0}
WITNESS = """
@dataclass(eq=False)
class Witness:
    file: str

    @hookimpl
    def on_train_end(self, model):
        with torch.no_grad():
            torch.save(model.eval()(input_ids=torch.arange(3, 40)[None]).logits, self.file)
"""


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("student", "names"),
    [
        ("tiny_student", ["lm_head"]),
        pytest.param("tiny_student", ["embed_tokens"], marks=pytest.mark.slow),
        pytest.param("tiny_teacher", ["lm_head"], marks=pytest.mark.slow),
        pytest.param("tiny_teacher", ["embed_tokens", "lm_head"], marks=pytest.mark.slow),
    ],
)
def test_they_train_as_in_full_fine_tuning_and_are_saved(lab, request, student, names):
    """The matrices start without effect, so the first step changes a module as in full fine-tuning."""
    from peft import PeftModel

    base = request.getfixturevalue(student)
    lab.plugin("witness", WITNESS)
    common = {"student": {"model": str(base)}, "optimizer": {"sgd": {}}, "train": STEP}
    whole = load(lab.run("whole", adapter={"full": {}}, **common).path / "model")
    probes = {"./witness.py:Witness": {"file": str(lab.folder / "logits.pt")}}
    run = lab.run("run", adapter={"lora": {"r": 4, "modules_to_save": names}}, probes=probes, **common)
    exported = load(export(run.path, lab.folder / "exported"))

    trained = torch.load(lab.folder / "logits.pt")
    adapted = PeftModel.from_pretrained(load(base), run.path / "adapter").eval()
    torch.testing.assert_close(logits(adapted), trained, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(exported), trained, rtol=1e-4, atol=1e-4)
    before = load(base)
    tied = before.config.tie_word_embeddings
    assert (exported.lm_head.weight is exported.model.embed_tokens.weight) == tied
    for module, name in ((lambda model: model.lm_head, "lm_head"), (lambda m: m.model.embed_tokens, "embed_tokens")):
        expected = module(whole if tied or name in names else before).weight
        torch.testing.assert_close(module(exported).weight, expected, rtol=1e-5, atol=1e-6)
    assert (whole.lm_head.weight - before.lm_head.weight).abs().max() > 1e-3


def test_a_copy_starts_from_the_stored_weights_and_not_from_rounded_ones(lab, tiny_teacher):
    """At a rate of 1e-8 a weight does not change; rounding to bfloat16 would change it by up to 2 ** -8 of its size."""
    adapter = {"lora": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["lm_head", "layers.1.mlp.up_proj"]}}
    student = {"model": str(tiny_teacher), "dtype": "bfloat16"}
    run = lab.run("run", student=student, adapter=adapter, train={"learning_rate": 1e-8, "max_steps": 1})
    stored = load_file(tiny_teacher / "model.safetensors")
    copies = {name.removeprefix("base_model.model."): weight for name, weight in run.adapter.items()}
    copies = {name: weight for name, weight in copies.items() if name in stored}
    assert set(copies) == {"lm_head.weight", "model.layers.1.mlp.up_proj.weight"}
    for name, weight in copies.items():
        assert 0 < (weight - stored[name]).abs().max() < 1e-6
        assert (stored[name].bfloat16() - stored[name]).abs().max() > 1e-4


def test_a_quantised_module_is_refused(lab):
    adapter = {"lora": {"modules_to_save": ["layers.1.mlp.up_proj"]}}
    with pytest.raises(RecipeError, match=r"layers\.1\.mlp\.up_proj` is quantised"):
        lab.run("run", student={"load": {"nf4": {}}}, adapter=adapter)
