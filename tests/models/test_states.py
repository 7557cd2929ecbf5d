"""Hidden states of layers at the positions of answer tokens, compared with transformers' own `hidden_states`."""

import numpy as np
import pytest
import torch

from neoplug.data.batch import Document, collate
from neoplug.errors import RunError
from neoplug.models.quiet import quiet_peft
from neoplug.models.switched import adapter_off, switched
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.testing.families import FAMILIES, MORE_FAMILIES, random_model

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

ALL = (0, 1, 2)  # of models with two layers


def document(length, first, last, seed):
    mask = np.zeros(length, dtype=bool)
    mask[first:last] = True
    return Document(np.random.default_rng(seed).integers(3, 200, length), mask, row=seed)


DOCUMENTS = [document(7, 2, 5, 1), document(21, 9, 21, 2), document(4, 1, 4, 3)]
BATCH = collate(DOCUMENTS)


def split(module, **more):
    return language_model(module, head_name(module), Vocabulary(module.config.vocab_size), **more)


def own_states(module, layers=ALL):
    """Return the states [N, H] of each layer by transformers, each document alone and without padding."""
    rows = {layer: [] for layer in layers}
    for each in DOCUMENTS:
        ids = torch.from_numpy(each.input_ids)[None]
        hidden = module(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True).hidden_states
        for layer in layers:
            text = hidden[layer][0, -len(each) :]  # virtual tokens precede the text
            rows[layer].append(text[:-1][torch.from_numpy(each.loss_mask[1:])])
    return {layer: torch.cat(parts) for layer, parts in rows.items()}


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for layer, states in theirs.items():
        assert states.std() > 0.01
        torch.testing.assert_close(ours[layer], states, rtol=1e-4, atol=1e-4)


def hooks_of(module):
    return [(len(part._forward_hooks), len(part._forward_pre_hooks)) for part in module.modules()]


@pytest.mark.parametrize("family", [*FAMILIES, *MORE_FAMILIES])
@torch.no_grad()
def test_they_are_those_of_transformers_in_every_family(family):
    module = random_model(family)
    model = split(module, longest=21)
    assert_equal(model.states(BATCH, ALL), own_states(random_model(family)))


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "qwen3"])
@pytest.mark.parametrize("layout", ["varlen", "flat", "block", "padded"])
@torch.no_grad()
def test_they_are_the_same_in_every_layout(family, layout):
    model = split(random_model(family), longest=21)
    assert model.layout == "varlen"
    model.layout = layout
    assert_equal(model.states(BATCH, ALL), own_states(random_model(family)))


def prompts():
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    return {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }


@pytest.fixture(params=["prompt", "p-tuning", "prefix"])
def prompted(request):
    from peft import get_peft_model

    torch.manual_seed(0)
    base = random_model("llama")
    with quiet_peft():
        module = get_peft_model(base, prompts()[request.param]).eval()
    with torch.no_grad():
        for weight in module.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn_like(weight))  # so that the text's states depend on them
    return language_model(module, head_name(base), Vocabulary(base.config.vocab_size))


@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
@torch.no_grad()
def test_virtual_tokens_do_not_shift_them(prompted):
    ours = prompted.states(BATCH, ALL)
    assert_equal(ours, own_states(prompted.module))
    unprompted = own_states(random_model("llama"))
    torch.testing.assert_close(ours[0], unprompted[0])  # the embeddings of the text
    assert (ours[1] - unprompted[1]).abs().max() > 0.01


@torch.no_grad()
def test_with_an_adapter_and_with_it_off():
    from peft import LoraConfig, get_peft_model

    base = random_model("llama")
    module = get_peft_model(base, LoraConfig(target_modules=["down_proj"], init_lora_weights=False)).eval()
    model = language_model(module, "lm_head", Vocabulary(base.config.vocab_size))
    ours, theirs = model.states(BATCH, ALL), own_states(module)
    assert_equal(ours, theirs)
    unadapted = own_states(random_model("llama"))
    assert (ours[1] - unadapted[1]).abs().max() > 0.01
    assert_equal(switched(model, adapter_off(module)).states(BATCH, ALL), unadapted)


@torch.no_grad()
def test_the_last_layer_is_what_the_output_head_reads_also_with_a_side_network():
    from neoplug_adapters.ladder import LadderSideTuning

    base = random_model("llama")
    module = LadderSideTuning(reduction_factor=4).add_adapter(base, torch.Generator().manual_seed(0))
    module.ladder.up.data += 0.1
    model = split(module)
    assert torch.equal(model.states(BATCH, [-1])[-1], model.hidden(BATCH))


@torch.no_grad()
def test_numbers_from_the_end_and_in_any_order():
    model = split(random_model("llama"))
    ours, all_states = model.states(BATCH, [-1, 1, -3]), own_states(model.module)
    assert list(ours) == [-1, 1, -3]
    assert_equal(ours, {-1: all_states[2], 1: all_states[1], -3: all_states[0]})


@pytest.mark.parametrize("layer", [3, -4, "q_proj", 1.0, True])
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(layer):
    model = split(random_model("llama"))
    message = rf"no layer {layer!r}\nwhy: .* from 0, the embeddings, to 2, .* from the end, -1 to -3\nfix: name one"
    with pytest.raises(RunError, match=message):
        model.states(BATCH, [0, layer])


def test_a_model_without_a_list_of_layers_is_refused():
    model = split(random_model("llama"))
    model.module.config.num_hidden_layers = 5
    with pytest.raises(RunError, match="the layers of LlamaForCausalLM cannot be found"):
        model.states(BATCH, [0])


def test_nothing_is_left_hooked_also_after_an_error(monkeypatch):
    model = split(random_model("llama"))
    before, head = hooks_of(model.module), model.module.lm_head
    model.states(BATCH, ALL)
    assert hooks_of(model.module) == before

    def fails(*_, **__):
        raise ArithmeticError

    monkeypatch.setattr(model.module.model.layers[1].mlp, "forward", fails)
    with pytest.raises(ArithmeticError):
        model.states(BATCH, ALL)
    assert hooks_of(model.module) == before
    assert "forward" not in vars(head)


def test_only_the_answer_tokens_of_the_asked_layers_are_kept():
    ours = split(random_model("llama")).states(BATCH, [1])
    assert list(ours) == [1]
    assert ours[1].shape == (BATCH.answer_tokens, 32)
    assert ours[1].untyped_storage().nbytes() == ours[1].nbytes  # no view of all tokens


def test_without_answer_tokens_there_is_no_row():
    ours = split(random_model("llama")).states(collate([document(5, 0, 0, 1)]), [0, -1])
    assert [tuple(states.shape) for states in ours.values()] == [(0, 32), (0, 32)]


def test_the_states_of_a_base_in_16_bits_are_those_of_its_forward_pass():
    module = random_model("llama").to(torch.bfloat16)
    ours = split(module).states(BATCH, [1])[1]
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours, own_states(module)[1], rtol=2e-2, atol=2e-2)


def test_the_states_of_a_base_in_4_bits_are_those_of_its_forward_pass(tmp_path):
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    random_model("llama", hidden_size=64, intermediate_size=64, num_key_value_heads=4, head_dim=16).save_pretrained(
        tmp_path
    )
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    module = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=config, dtype=torch.float32).eval()
    with torch.no_grad():
        ours, theirs = split(module).states(BATCH, ALL), own_states(module)
    assert_equal(ours, theirs)
