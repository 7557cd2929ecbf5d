"""Adapters with virtual tokens: options of peft, number of parameters by formula, initialisation, refusals."""

import copy
from dataclasses import replace

import pytest
import torch
from peft import PeftModel
from transformers import FalconH1Config, FalconH1ForCausalLM, LlamaConfig, LlamaForCausalLM

from neoplug.errors import RecipeError, UsageError
from neoplug.models.quiet import quiet_peft
from neoplug.models.stored_adapter import rename_cache_argument, virtual_tokens
from neoplug_adapters.p_tuning import PTuning
from neoplug_adapters.prefix_tuning import PrefixTuning
from neoplug_adapters.prompt_tuning import PromptTuning

pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v6:FutureWarning")  # peft calls transformers by old names
H, KEYS, LAYERS, T = 48, 24, 2, 20  # hidden size, size of the keys of a layer, layers, default number of virtual tokens


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    sizes = {
        "hidden_size": H,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "vocab_size": 384,
        "initializer_range": 0.2,
    }
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)).requires_grad_(False)


@pytest.fixture
def adapted(base):
    return lambda plugin: plugin.add_adapter(copy.deepcopy(base), torch.Generator().manual_seed(0))


def size(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def lstm(inputs, width):
    """Return the number of parameters of a bidirectional LSTM layer."""
    return 2 * 4 * width * (inputs + width + 2)


@pytest.mark.parametrize(
    ("plugin", "expected"),
    [
        (PromptTuning(), T * H),
        (PromptTuning(num_virtual_tokens=3, prompt_tuning_init="RANDOM"), 3 * H),
        (PrefixTuning(), T * LAYERS * 2 * KEYS),
        (
            PrefixTuning(prefix_projection=True, encoder_hidden_size=7),
            T * KEYS + 7 * (KEYS + 1) + (7 + 1) * LAYERS * 2 * KEYS,
        ),
        (PTuning(), T * H + 3 * H * (H + 1)),
        (PTuning(encoder_hidden_size=8), T * H + 8 * (H + 1) + 8 * (8 + 1) + (8 + 1) * H),
        (
            PTuning(encoder_reparameterization_type="LSTM", encoder_hidden_size=8, encoder_num_layers=2),
            T * H + lstm(H, 8) + lstm(16, 8) + 16 * 17 + 17 * H,
        ),
    ],
)
def test_the_number_of_parameters_and_the_options(adapted, plugin, expected):
    model = adapted(plugin)
    assert size(model) == expected
    assert virtual_tokens(model) == plugin.num_virtual_tokens
    found = model.peft_config["default"]
    for name, value in vars(plugin).items():
        assert getattr(found, name) == value or value is None


def test_other_adapters_have_no_virtual_tokens(base):
    assert virtual_tokens(base) == 0


def test_prompts_start_as_tokens_of_the_vocabulary_or_as_a_text(adapted, base, tiny_tokenizer, tmp_path):
    table = base.get_input_embeddings().weight
    drawn = adapted(PromptTuning()).prompt_encoder["default"].embedding.weight
    assert all(any(torch.equal(row, token) for token in table) for row in drawn)
    tiny_tokenizer.save_pretrained(tmp_path)
    plugin = PromptTuning(prompt_tuning_init="TEXT", prompt_tuning_init_text="Say it", num_virtual_tokens=9)
    told = adapted(replace(plugin, tokenizer_name_or_path=str(tmp_path))).prompt_encoder["default"].embedding.weight
    ids = tiny_tokenizer("Say it")["input_ids"]
    assert torch.equal(told, table[(ids * 9)[:9]])


def test_the_initial_text_is_tokenised_by_the_students_tokenizer(tiny_student):
    model = LlamaForCausalLM.from_pretrained(tiny_student).requires_grad_(False)
    plugin = PromptTuning(prompt_tuning_init="TEXT", prompt_tuning_init_text="Say it")
    config = plugin.add_adapter(model, torch.Generator().manual_seed(0)).peft_config["default"]
    assert config.tokenizer_name_or_path == str(tiny_student)


def test_init_weights_zero_gives_a_prefix_of_zeros(adapted):
    weight = adapted(PrefixTuning(init_weights="zero")).prompt_encoder["default"].embedding.weight
    assert not weight.any()


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        (PromptTuning, {"num_virtual_tokens": 0}, "num_virtual_tokens is 0, but must be above 0"),
        (PromptTuning, {"prompt_tuning_init": "TEXT"}, "prompt_tuning_init_text is missing"),
        (PromptTuning, {"prompt_tuning_init_text": "Say it"}, "prompt_tuning_init_text has no effect"),
        (PromptTuning, {"tokenizer_name_or_path": "gpt2"}, "tokenizer_name_or_path has no effect"),
        (PrefixTuning, {"encoder_hidden_size": 8}, "encoder_hidden_size has no effect"),
        (PTuning, {"encoder_num_layers": 3}, "encoder_num_layers is for"),
        (PTuning, {"encoder_dropout": 0.1}, "encoder_dropout is for"),
        (PTuning, {"encoder_dropout": 1.0}, "encoder_dropout is 1.0, but must lie in"),
    ],
)
def test_options_without_effect_are_refused(kind, options, said):
    with pytest.raises(ValueError, match=said):
        kind(**options)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_prefix_is_refused_where_layers_keep_a_state(device):
    config = FalconH1Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, vocab_size=64, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8,
    )  # fmt: skip
    with torch.device(device):
        model = FalconH1ForCausalLM(config)
    with pytest.raises(RecipeError, match="cannot do prefix_tuning on this model") as caught:
        PrefixTuning().add_adapter(model, torch.Generator().manual_seed(0))
    assert "keep a state in addition to keys and values" in str(caught.value)


@pytest.mark.parametrize("plugin", [PromptTuning(), PrefixTuning(), PTuning()])
def test_merging_is_refused(plugin, adapted):
    with pytest.raises(UsageError, match="no weight can represent them"):
        plugin.merge_adapter(adapted(plugin))


@pytest.mark.parametrize("plugin", [PromptTuning(), PrefixTuning(), PTuning()])
def test_plain_peft_generates_as_the_adapters_page_describes(plugin, adapted, base, tmp_path):
    """Without a cache it appends the most likely token by the full logits, again and again."""
    with quiet_peft():
        adapted(plugin).save_pretrained(tmp_path)
    model = rename_cache_argument(PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)).eval()
    text = wanted = torch.arange(5, 17)[None]
    with torch.no_grad(), quiet_peft():
        for _ in range(8):
            logits = model(input_ids=wanted, attention_mask=torch.ones_like(wanted), use_cache=False).logits
            wanted = torch.cat([wanted, logits[:, -1:].argmax(-1)], dim=1)
        found = model.generate(
            input_ids=text, attention_mask=torch.ones_like(text), max_new_tokens=8, do_sample=False, use_cache=False,
            pad_token_id=0,
        )  # fmt: skip
    assert torch.equal(found, wanted[:, : found.shape[1]])
    assert found.shape[1] > text.shape[1] + 2
