"""Every installed adapter is exported merged and as a LoRA that compute the same, or refused with its reason."""

import copy
import re
from pathlib import Path

import pytest
import torch

from neoplug import AdapterTraits
from neoplug.errors import UsageError
from neoplug.export.lora import export_lora
from neoplug.export.merge import export
from neoplug.models.resolve import locate
from neoplug.registry import installed
from neoplug.runs.directory import RunDir
from neoplug.testing.small_model import SmallModel

# raised within peft
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning"),
    pytest.mark.filterwarnings("ignore:Specified to not save:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
    pytest.mark.filterwarnings("ignore:The following rank_pattern keys:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:Detected that the base layer has no bias term:UserWarning"),
    pytest.mark.filterwarnings("ignore:Failed to load the CUDA extension:UserWarning"),
    pytest.mark.filterwarnings("ignore:Setting boft_n_butterfly_factor to 1:UserWarning"),
]


def declares(adapter, trait):
    return bool(getattr(AdapterTraits.of(adapter), trait))


def model_in(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def small(tiny_student):
    return SmallModel(tiny_student)


def entry_of(adapter):
    target = f"{type(adapter).__module__}:{type(adapter).__name__}"
    return next(entry for entry in installed() if entry.target == target)


def saved_as_a_run(adapter, student, folder, path):
    """Save a student as a finished run does; return the run's folder and the base of its adapter."""
    from transformers import AutoTokenizer

    located, base = locate(str(folder)), model_in(folder)
    resolved = {
        "format": 1,
        "student": {"model": str(folder)},
        "data": {},
        "loss": {},
        "adapter": {entry_of(adapter).name: {}},
        "seed": 0,
    }
    record = {"source": str(folder), "revision": None, "sha256": located.sha256}
    lock = {
        "format": 1, "seed": 0, "platform": "", "versions": {}, "hardware": {"cpu": "", "gpus": []},
        "data": {"fingerprint": ""}, "models": {"student": record},
    }  # fmt: skip
    run = RunDir.create(path, resolved, lock)
    if hasattr(adapter, "base_weights"):  # a run saves them
        base.load_state_dict(adapter.base_weights(student))
        base.save_pretrained(run.student)
        AutoTokenizer.from_pretrained(folder).save_pretrained(run.student)
    everything = all(parameter.requires_grad for parameter in student.parameters())
    where = run.model if everything else run.adapter
    where.mkdir()
    getattr(adapter, "save_adapter", lambda model, path: model.save_pretrained(path))(student, where)
    return run.path, base


def differ_in_linear_layers_only(student, base):
    """Return whether two models differ only in weights of linear layers."""
    linear = {f"{name}.weight" for name, module in base.named_modules() if isinstance(module, torch.nn.Linear)}
    own = base.state_dict()
    return all(name in linear or torch.equal(weight, own[name]) for name, weight in student.state_dict().items())


def documented_loras():
    """Return the cell of each adapter in the export page's table of LoRAs."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "export.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`\w.*) \| (.*) \|$", page.partition("## A LoRA of any adapter")[2], re.MULTILINE)
    return {name: cell for names, cell in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_page_has_each_adapter_that_can_be_merged():
    own = (entry for entry in installed() if entry.target.startswith("neoplug_adapters."))
    classes = {entry.name: entry.load() for entry in own}
    merge = {name for name, plugin in classes.items() if hasattr(plugin, "add_adapter")}
    assert sorted(documented_loras()) == sorted(name for name in merge if not declares(classes[name], "cannot_merge"))


@pytest.mark.slow
def test_the_exported_lora_computes_the_same_or_is_refused(adapter, small, tiny_student, tmp_path):
    from peft import PeftModel

    student = small.adapted(adapter)
    small.train(adapter, student)
    run, base = saved_as_a_run(adapter, student, tiny_student, tmp_path / "run")
    if declares(adapter, "cannot_merge"):
        for write in (export, export_lora):
            with pytest.raises(UsageError, match=re.escape(AdapterTraits.of(adapter).cannot_merge)):
                write(run, tmp_path / "lora")
        return
    merged = model_in(export(run, tmp_path / "merged"))
    documented = documented_loras().get(entry_of(adapter).name, "")
    if not differ_in_linear_layers_only(merged, base):
        assert "refused" in documented or not documented
        with pytest.raises(UsageError, match=r"why: .*model.* changed"):
            export_lora(run, tmp_path / "lora", rank=48)
        return
    found = export_lora(run, tmp_path / "lora", rank=48)  # the smaller size of each layer is 48 at most
    assert found.exact
    assert found.error < 1e-3
    assert found.needed <= 16 or not re.match("exact(?!.*where)", documented)
    assert found.needed > 16 or not documented.startswith("the largest")
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path / "lora")
    wanted = small.logits(merged)
    torch.testing.assert_close(small.logits(loaded), wanted, atol=1e-4, rtol=0)
    assert (wanted - small.logits(base)).abs().max() > 1e-2
