"""`plan --match` for every installed adapter: the planned size is compared with a real model built by its override."""

import re
import shutil
from itertools import repeat
from pathlib import Path

import pytest
import torch

from neoplug import AdapterTraits
from neoplug import recipe as recipes
from neoplug.data.batch import Document, collate
from neoplug.errors import UsageError
from neoplug.registry import Plugins, installed
from neoplug.runs.plan import plan

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "adapters.md").read_text(encoding="utf-8")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),
]


@pytest.fixture(scope="module")
def student(tmp_path_factory, tiny_student):
    """Return the folder of a Llama that is wider than the default ranks of adapters."""
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = shutil.copytree(tiny_student, tmp_path_factory.mktemp("wide") / "student")
    config = AutoConfig.from_pretrained(tiny_student, hidden_size=128, intermediate_size=256, head_dim=32)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def load(tmp_path_factory, student, tiny_chat):
    """Return a function that reads the recipe with overrides."""
    file = tmp_path_factory.mktemp("recipe") / "wide.yaml"
    file.write_text(
        f"student: {{model: {student}}}\ndata: {{source: {tiny_chat}, max_length: 64, packing: false}}\n"
        "adapter: {lora: {}}\nloss: {cross_entropy: {}}\ntrain: {max_steps: 6}\n"
    )
    return lambda *overrides: recipes.load(file, overrides)


@pytest.fixture(scope="module")
def counted(student):
    """Return a function that counts the parameters of the real model, and those that a recipe's adapter trains."""
    from transformers import AutoModelForCausalLM

    ids = torch.randint(300, (2, 16), generator=torch.Generator().manual_seed(0))
    batch = collate([Document(row.numpy(), (row >= 0).numpy(), place) for place, row in enumerate(ids)])

    def count(checked):
        model = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32).requires_grad_(False)
        own, rng = model.num_parameters(), torch.Generator().manual_seed(0)
        plugins = Plugins({"adapter": checked.plugins.section("adapter")})
        model = plugins.one("add_adapter", model=model, batches=repeat(batch), total_steps=6, rng=rng)
        assert model(input_ids=ids).logits.isfinite().all()
        return own, sum(weight.numel() for weight in model.parameters() if weight.requires_grad)

    return count


@pytest.mark.slow
def test_an_adapter_has_the_requested_number_of_parameters(adapter, load, counted, request):
    """Twice the default number; half of it where the student itself has fewer."""
    name = request.node.callspec.id
    plain = load(f"adapter={{{name}: {{}}}}")
    own, default = counted(plain)
    wanted = 2 * default if 2 * default <= own else default // 2
    try:
        found = plan(plain, wanted, quick=True)["match"]
        override, trainable = found["override"], found["trainable"]
        assert abs(trainable / wanted - 1) < 0.25
        assert found["difference"] == pytest.approx(trainable / wanted - 1)
    except UsageError as error:
        what, _, fix = str(error).splitlines()
        if not hasattr(adapter, AdapterTraits.of(adapter).sized_by):
            assert what == f"`{name}` has no option that sizes it"
            assert fix.endswith(f"--match parameters={default}")
            return
        assert what == f"`{name}` cannot have {wanted:,} trainable parameters here"
        override, trainable = fix.removeprefix("fix: ").partition(",")[0], int(fix.rpartition("=")[2])
    _, there = counted(load(f"adapter={{{name}: {{}}}}", override))
    assert there == pytest.approx(trainable, rel=0.02 if AdapterTraits.of(adapter).shaped_by_weights else 0)


def test_the_page_names_the_option_that_sizes_each_adapter(adapter, request):
    name, option = request.node.callspec.id, AdapterTraits.of(adapter).sized_by
    (page,) = re.findall(r"\n## As many parameters\n(.*?)\n## ", PAGE, re.DOTALL)
    rows = re.findall(r"^\| (?:`(\w+)`|none.*?) \| (.*) \|$", page, re.MULTILINE)
    documented = {adapter: option for option, adapters in rows for adapter in re.findall(r"`(\w+)`", adapters)}
    assert documented.get(name, "r") == (option if hasattr(adapter, option) else "")


def test_the_page_has_learning_rates_only_of_installed_adapters():
    (page,) = re.findall(r"\n## Learning rates\n(.*?)(?:\n## |\Z)", PAGE, re.DOTALL)
    rows = re.findall(r"^\| (.*) \| (.*) \| (.*) \|$", page, re.MULTILINE)[2:]
    named = [name for _, adapters, _ in rows for name in re.findall(r"`(\w+)`", adapters)]
    assert set(named) <= {entry.name for entry in installed()}
    assert len(named) == len(set(named))
    assert rows[-1][:2] == ("not known", "every other")
    assert all(source for _, _, source in rows)
