"""LanguageModel (hidden states, then head), compared with the logits of the unmodified transformers model."""

from copy import deepcopy
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    Qwen2Config,
)

from neoplug.data.batch import Document, collate
from neoplug.errors import RunError
from neoplug.models import varlen_attention as attention
from neoplug.models import verify
from neoplug.models.head import Head
from neoplug.models.verify import head_name, language_model
from neoplug.models.vocabulary import Vocabulary
from neoplug.training.objective import Loss, objective
from neoplug_losses.cross_entropy import CrossEntropy

# peft calls transformers by old names
pytestmark = pytest.mark.filterwarnings("ignore:.*removed in v(6|ersion):FutureWarning")

ROWS = 96
USUAL = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
NO_GROUPS = {name: value for name, value in USUAL.items() if name not in ("num_key_value_heads", "head_dim")}
CONFIGS = {
    "llama": LlamaConfig(**USUAL, tie_word_embeddings=False),
    "llama, tied": LlamaConfig(**USUAL, tie_word_embeddings=True),
    "qwen2": Qwen2Config(**NO_GROUPS, num_key_value_heads=2, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**USUAL, final_logit_softcapping=3.0, query_pre_attn_scalar=8, sliding_window=16),
    "gpt2": GPT2Config(vocab_size=ROWS, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.2,
                       bos_token_id=1, eos_token_id=2),
    "opt": OPTConfig(vocab_size=ROWS, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
                     word_embed_proj_dim=32, max_position_embeddings=64, init_std=0.2, do_layer_norm_before=True),
    "granite": GraniteConfig(**NO_GROUPS, num_key_value_heads=2, logits_scaling=4.0),
    "cohere": CohereConfig(**NO_GROUPS, num_key_value_heads=2, logit_scale=0.25),
    "mistral": MistralConfig(**USUAL, sliding_window=16, tie_word_embeddings=False),
    "phi3": Phi3Config(**NO_GROUPS, num_key_value_heads=2),
}  # fmt: skip


def build(family, dtype=torch.float32):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(CONFIGS[family]), dtype=dtype).eval().requires_grad_(False)


def document(length, seed, loss_mask=None):
    tokens = np.random.default_rng(seed).integers(3, ROWS, length)
    mask = np.zeros(length, dtype=bool)
    mask[slice(1, None) if loss_mask is None else loss_mask] = True
    return Document(tokens, mask, row=seed)


DOCUMENTS = [document(7, 1), document(4, 2, slice(2, 3)), document(11, 3, slice(5, 9))]


def own_logits(module, documents=DOCUMENTS):
    """Return the model's logits [N, V] that predict answer tokens, with one call of the model for each document."""
    rows = []
    for each in documents:
        ids = torch.from_numpy(each.input_ids)[None]
        logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(each) :]
        rows.append(logits[:-1][torch.from_numpy(each.loss_mask[1:])])
    return torch.cat(rows)


def split(module, vocabulary=None, name=None, **more):
    return language_model(module, name or head_name(module), vocabulary or Vocabulary(ROWS), **more)


@pytest.fixture
def without_varlen(monkeypatch):
    """Disable variable-length attention, as for a model that does not call attention by name, or on a GPU."""
    monkeypatch.setattr(verify, "use_varlen", lambda model: False)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_head_of_the_hidden_states_gives_the_models_logits(family):
    theirs = own_logits(build(family))
    model = split(build(family))
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", CONFIGS)
def test_every_supported_layout_isolates_documents(family, monkeypatch):
    assert split(build(family)).layout == "varlen"
    monkeypatch.setattr(verify, "use_varlen", lambda model: False)
    assert split(build(family)).layout == ("block" if family == "opt" else "flat")


@pytest.mark.parametrize("change", [lambda states: 0.9 * states, lambda states: states[:, :0]], ids=["other", "error"])
def test_a_family_with_its_own_attention_function_keeps_it(change, monkeypatch):
    """A family's file may use its own attention function under the same name; replacing it would change the results."""
    from transformers.models.llama import modeling_llama

    original = modeling_llama.ALL_ATTENTION_FUNCTIONS["sdpa"]

    def own_attention(*states, **settings):
        output, weights = original(*states, **settings)
        return change(output), weights

    registered = modeling_llama.ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(registered, attention.VARLEN["sdpa"], partial(attention._varlen, own_attention))
    model = split(build("llama"))
    assert model.layout == "flat"
    assert model.module.config._attn_implementation == "sdpa"
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
        torch.testing.assert_close(ours, own_logits(build("llama")), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        *((family, layout) for family in ("llama", "gpt2") for layout in ("flat", "block")),
        *((family, "padded") for family in CONFIGS),
    ],
)
def test_every_other_layout_gives_the_same_logits(family, layout):
    model = split(build(family))
    model.layout = layout
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
        torch.testing.assert_close(ours, own_logits(model.module), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral"])
def test_a_mask_of_ones_does_not_isolate_documents(family):
    """So `flat` passes no mask: position_ids that restart at 0 isolate documents only without one."""
    module = build(family)
    inputs, positions = collate(DOCUMENTS).layout("flat")
    with torch.no_grad():
        without = module(**inputs).logits[0, positions]
        leaking = module(**inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}).logits[0, positions]
        separate = own_logits(module)
    torch.testing.assert_close(without, separate, rtol=1e-4, atol=1e-4)
    assert (leaking - separate).abs().max() > 0.1
    first = DOCUMENTS[0].answer_tokens
    torch.testing.assert_close(leaking[:first], separate[:first], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama"])
@pytest.mark.parametrize("layout", ["varlen", "block"])
def test_eager_attention_gets_additive_masks(family, layout):
    """Eager attention adds the mask to the scores, so a boolean mask would mask nothing."""
    module = build(family)
    module.set_attn_implementation("eager")
    model = split(module)
    assert model.layout == "varlen"
    model.layout = layout
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
        torch.testing.assert_close(ours, own_logits(module), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["varlen", "flat", "block"])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_attention_windows_apply_inside_documents(family, layout):
    """Documents of 40 and 25 tokens with windows of 16, in all layers or in one kind of layer."""
    long = [document(40, 8), document(25, 9)]
    model = split(build(family), longest=40)
    model.layout = layout
    with torch.no_grad():
        ours = model.head(model.hidden(collate(long)))
        torch.testing.assert_close(ours, own_logits(build(family), long), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("without_varlen")
@pytest.mark.parametrize(("longest", "layout"), [(16, "block"), (40, "padded")])
def test_a_window_shorter_than_the_documents_is_verified(monkeypatch, longest, layout, caplog):
    """A block mask without the window changes the results only of documents that are longer than the window."""
    module = build("mistral")
    own = module.forward
    monkeypatch.setattr(verify, "_windows", lambda config: {"full_attention": None})

    def ignoring(position_ids=None, **more):  # so that position_ids do not already isolate documents
        return own(**more)

    module.forward = ignoring
    with caplog.at_level("INFO", logger="neoplug"):
        assert split(module, longest=longest).layout == layout
    assert ("not block, since a document's hidden states differ" in caplog.text) == (layout == "padded")


def test_a_layout_whose_padding_changes_a_row_is_rejected():
    """The shorter of two padded rows is compared too."""
    module = build("llama")
    own = module.forward

    def by_width(input_ids, **more):
        ids = input_ids.clone()
        ids[:, 0] = ids.shape[1]  # the first token depends on the width of the batch
        return own(input_ids=ids, **more)

    module.forward = by_width
    with pytest.raises(RunError, match="not padded, since a document's hidden states differ"):
        split(module)


def test_a_model_without_document_isolation_uses_one_row_a_document(caplog):
    """The model ignores masks and positions, so documents are isolated only in separate rows."""
    module = build("opt")
    own = module.forward

    def ignoring(input_ids, attention_mask=None, position_ids=None, **more):
        return own(input_ids=input_ids, attention_mask=attention_mask if attention_mask.ndim == 2 else None, **more)

    def forward(input_ids, attention_mask=None, **more):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return ignoring(input_ids, mask, **more)

    module.forward = forward
    with caplog.at_level("INFO", logger="neoplug"):
        model = split(module, role="teacher")
    assert model.layout == "padded"
    assert module.config._attn_implementation == "sdpa"
    why = "since one document changes another's hidden states by 0.7 of the largest"
    logged = f"each document has its own row; not varlen, {why}; not flat, {why}; not block, {why}"
    assert f"teacher: layout padded, {logged}" in caplog.text


@pytest.mark.parametrize(
    "change",
    [lambda logits: logits + 0.3 * torch.sin(3 * logits), lambda logits: 1.1 * logits, lambda logits: logits.flip(-1)],
    ids=["nonlinear", "unknown scale", "permuted"],
)
def test_an_unsupported_head_is_refused(change):
    module = build("llama")
    own = module.forward

    def forward(*args, **kwargs):
        output = own(*args, **kwargs)
        output.logits = change(output.logits)
        return output

    module.forward = forward
    with pytest.raises(RunError, match="neoplug cannot compute the teacher's logits from its hidden states"):
        split(module, role="teacher")
    assert "forward" not in vars(module.lm_head)


def test_a_model_without_a_head_is_refused():
    with pytest.raises(RunError, match="Linear has no output head"):
        head_name(torch.nn.Linear(2, 2))


def test_logits_are_restricted_to_the_shared_vocabulary():
    module = build("llama")
    ids = torch.tensor([row for row in range(ROWS) if row % 5])
    for vocabulary, keep in ((Vocabulary(80), torch.arange(80)), (Vocabulary(len(ids), ids), ids)):
        model = split(module, vocabulary)
        with torch.no_grad():
            ours = model.head(model.hidden(collate(DOCUMENTS)))
            torch.testing.assert_close(ours, own_logits(module)[:, keep], rtol=1e-4, atol=1e-4)


def adapted(module, config):
    from peft import get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(module, config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))  # so that the adapter changes the logits
    return model.eval()


def prompt_methods():
    from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig

    return {
        "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=5),
        "p-tuning": PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=16),
        "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
    }


@pytest.mark.parametrize("method", ["prompt", "p-tuning", "prefix"])
@pytest.mark.filterwarnings("ignore:Position ids are not supported for parameter efficient tuning:UserWarning")
def test_virtual_tokens_do_not_shift_hidden_states(method):
    """Hidden states are counted from the right, so columns of virtual tokens before the text do not shift them."""
    base = build("llama")
    name = head_name(base)
    module = adapted(base, prompt_methods()[method])
    model = split(module, name=name)
    assert model.layout == "padded"
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
        theirs = own_logits(module)
        base_logits = own_logits(build("llama"))
    assert (theirs - base_logits).abs().max() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def head_adapters():
    from peft import LoraConfig

    some = ["q_proj", "down_proj"]
    return {
        "lora on the head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[*some, "lm_head"]),
        "dora on the head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=[*some, "lm_head"], use_dora=True),
        "a trained head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=some, modules_to_save=["lm_head"]),
        "an unadapted head": LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=some),
    }


@pytest.mark.parametrize("vocabulary", [Vocabulary(ROWS), Vocabulary(80)], ids=["whole", "padded rows"])
@pytest.mark.parametrize("kind", ["lora on the head", "dora on the head", "a trained head", "an unadapted head"])
def test_loss_and_gradients_of_an_adapted_head(kind, vocabulary):
    base = build("llama")
    name = head_name(base)
    module = adapted(base, head_adapters()[kind])
    trainable = {n: p for n, p in module.named_parameters() if p.requires_grad}
    assert any("lm_head" in n for n in trainable) == (kind != "an unadapted head")
    model = split(module, vocabulary, name)
    documents = [document(9, 4, slice(3, 8)), document(5, 5)]
    for each in documents:
        each.input_ids[:] %= 80
    batch = collate(documents)

    losses = [Loss("cross_entropy", 1.0, lambda student, labels, **_: CrossEntropy().token_loss(student, labels))]
    total, _ = objective(losses, model.hidden(batch), model.head, None, batch.labels, 0.0)
    total.backward()
    ours = {n: p.grad for n, p in trainable.items()}
    module.zero_grad()
    logits = own_logits(module, documents)[:, : vocabulary.size]
    expected = functional.cross_entropy(logits.double(), batch.labels, reduction="sum")
    expected.backward()

    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    assert all(p.grad is None for p in module.parameters() if not p.requires_grad)
    for n, p in trainable.items():
        assert p.grad.abs().max() > 1e-4, n
        torch.testing.assert_close(ours[n], p.grad, rtol=1e-3, atol=1e-4)


def test_verification_restores_the_model():
    module = build("llama").train()
    before = module.state_dict().keys()
    model = split(module)
    model.hidden(collate(DOCUMENTS))
    assert module.training
    assert module.state_dict().keys() == before
    assert "forward" not in vars(module.lm_head)


def test_bfloat16_is_verified_within_its_rounding():
    module = build("llama", torch.bfloat16)
    model = split(module, autocast=torch.bfloat16)
    with torch.no_grad():
        ours = model.head(model.hidden(collate(DOCUMENTS)))
        theirs = own_logits(module).float()
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() < 0.05 * theirs.abs().max()


@pytest.mark.parametrize("kind", ["lora on the head", "dora on the head", "a trained head", "an unadapted head"])
def test_an_adapted_head_of_a_bfloat16_model_does_not_round_its_logits(kind):
    base = build("llama", torch.bfloat16)
    name = head_name(base)
    module = adapted(base, head_adapters()[kind])
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    model = split(module, name=name, autocast=torch.bfloat16)
    hidden = model.hidden(collate(DOCUMENTS))
    ours = model.head(hidden)
    ours.sum().backward()
    with torch.no_grad():
        exact = model.head.module.double()(hidden.double())
    assert ours.dtype == torch.float32
    assert (ours - exact).abs().max() < 1e-5 * exact.abs().max()
    assert (ours - ours.bfloat16()).abs().max() > 1e-4


def test_a_trainable_head_may_have_a_frozen_bfloat16_bias():
    """Phi and GPT-J have heads with a bias; an adapter may train the weight alone, which is then float32."""
    torch.manual_seed(0)
    module = torch.nn.Linear(8, ROWS, dtype=torch.bfloat16).requires_grad_(False)
    module.weight = torch.nn.Parameter(module.weight.float())
    hidden = torch.randn(5, 8)
    exact = functional.linear(hidden.double(), module.weight.double(), module.bias.double())
    for vocabulary, rows in ((Vocabulary(ROWS), slice(None)), (Vocabulary(80), slice(80))):
        logits = Head(module, vocabulary)(hidden)
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits.double(), exact[:, rows], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("invocation", [[7, 8, 9], [5]])
def test_documents_are_isolated_from_an_adapter_that_reads_token_ids(invocation):
    """Activated LoRA changes the tokens after the last invocation of a row: each document needs its own row."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_config(CONFIGS["llama"]).eval()
    config = LoraConfig(target_modules=["q_proj", "v_proj"], alora_invocation_tokens=invocation, task_type="CAUSAL_LM")
    model = get_peft_model(base, config).eval()
    for weight in model.parameters():
        weight.data.add_(0.1 * torch.randn_like(weight))
    ours = language_model(model, "lm_head", Vocabulary(ROWS))
    rows = [[10, 11, *invocation, 12, 13, 14], [20, 21, 22, 23], [30, *invocation, 31, 32, 33, 34, 35, 36]]
    batch = collate([Document(np.array(row), np.ones(len(row), dtype=bool), row=0) for row in rows])
    with torch.no_grad():
        found = ours.head(ours.hidden(batch))
        expected = [model(input_ids=torch.tensor([row])).logits[0, :-1] for row in rows]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)
