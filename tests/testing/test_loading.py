"""`check_load`: it passes correct ways to load a model, and names what is wrong with others by property."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from neoplug import hookimpl
from neoplug.testing import LOAD, Broken, check_load, examine


@dataclass(eq=False)
class Rounded:
    """A correct way: weights of linear layers are rounded to a few bits, with a scale for each row."""

    bits: int = 4

    @hookimpl
    def load_kwargs(self):
        return {"use_safetensors": True}

    @hookimpl
    def after_load(self, model):
        for layer in linear(model):
            layer.weight.data = self.changed(layer.weight.data)

    def changed(self, weight):
        steps = 2 ** (self.bits - 1) - 1
        scale = weight.abs().amax(-1, keepdim=True) / steps
        return self.rounded(weight / scale) * scale

    def rounded(self, levels):
        return levels.round()


def linear(model):
    head = model.get_output_embeddings()
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]


@dataclass(eq=False)
class Eager:
    """A correct way, without options and `after_load`."""

    @hookimpl
    def load_kwargs(self):
        return {"attn_implementation": "eager"}


@dataclass(eq=False)
class Signs(Rounded):
    """A correct way by its own account: of one bit."""

    bits: int = 1

    exempt: ClassVar = {"weights": "one bit", "near": "one bit"}

    def changed(self, weight):
        return weight.sign() * weight.abs().mean(-1, keepdim=True) if self.bits == 1 else super().changed(weight)


class SetsTheType(Rounded):
    @hookimpl
    def load_kwargs(self):
        return {"dtype": torch.bfloat16}


class Unknown(Rounded):
    @hookimpl
    def load_kwargs(self):
        return {"no_such_argument": 1}


class StudentsAlone(Rounded):
    @hookimpl
    def after_load(self, model, role):
        raise KeyError(role) if role == "teacher" else AssertionError


class NotFinite(Rounded):
    def changed(self, weight):
        return weight / 0.0 * 0.0


class OnMeta(Rounded):
    @hookimpl
    def after_load(self, model):
        model.lm_head.to("meta")


class Stochastic(Rounded):
    def rounded(self, levels):
        return (levels + torch.rand(levels.shape) - 0.5).round()


class FourBitsAlways(Rounded):
    def changed(self, weight):
        return Rounded().changed(weight) if self.bits != 4 else super().changed(weight)


class OneStepTooMany(Rounded):
    """The scale is that of 2^(bits - 1) steps, the levels are those of one fewer."""

    def changed(self, weight):
        return super().changed(weight) * 7 / 8


class WrongRow(Rounded):
    def changed(self, weight):
        rounded = super().changed(weight)
        rounded[3] *= 2
        return rounded


class Transposed(Rounded):
    """Scales of the columns in place of the rows', of square layers."""

    def changed(self, weight):
        scale = weight.abs().amax(-1) / 7
        return (weight / scale[:, None]).round() * (scale if len(weight) == weight.shape[1] else scale[:, None])


class ScalesByRow(Rounded):
    """Blocks of 64 weights run over the flattened matrix, but scales are read as if each row started a block."""

    def changed(self, weight):
        rows, width = weight.shape
        blocks = weight.reshape(-1, 64)
        scale = blocks.abs().amax(-1) / 7
        levels = (blocks / scale[:, None]).round().view(weight.shape)
        return levels * scale[torch.arange(rows)[:, None] * (width // 64) + torch.arange(width) // 64]


class NewNorms(Rounded):
    @hookimpl
    def after_load(self, model):
        model.model.norm.weight.data = torch.linspace(-1, 1, model.config.hidden_size)


class RoundsInEvaluation(Rounded):
    """Activations are rounded, as LLM.int8() does on a CPU, in evaluation alone."""

    @hookimpl
    def after_load(self, model):
        for layer in linear(model):
            layer.register_forward_pre_hook(self.activations)

    def activations(self, layer, given):
        return given if layer.training else (self.rounded_by(given[0], given[0].abs().amax(-1, keepdim=True)),)

    def rounded_by(self, hidden, largest):
        return hidden + ((hidden / largest * 7).round() * largest / 7 - hidden).detach()


class RoundsByBatch(RoundsInEvaluation):
    def activations(self, layer, given):
        return (self.rounded_by(given[0], given[0].abs().amax()),)


@dataclass(eq=False)
class LLMInt8:
    """bitsandbytes as it is: it rounds activations on a CPU in evaluation, but columns with an outlier in the batch."""

    @hookimpl
    def load_kwargs(self):
        from transformers import BitsAndBytesConfig

        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}


class CutsGradients(Rounded):
    """As a repacked layer of bitsandbytes: its input gets no gradient after an evaluation."""

    @hookimpl
    def after_load(self, model):
        for layer in model.model.layers:
            layer.mlp.register_forward_pre_hook(self.cut)

    def cut(self, layer, given):
        if not layer.training:
            layer.packed = True
        return (given[0].detach(),) if hasattr(layer, "packed") else given


class Drifts(Rounded):
    """Its weights are rounded again in each training step, with another scale."""

    @hookimpl
    def after_load(self, model):
        for layer in linear(model):
            layer.register_forward_pre_hook(self.drift)

    def drift(self, layer, given):
        if layer.training:
            layer.weight.data *= 1 + 1e-6


class Shrinks(Rounded):
    """It quantises after loading, of which a plan has no word."""

    @hookimpl
    def after_load(self, model):
        model.to(torch.bfloat16)


class SetsTheDefault(Rounded):
    @hookimpl
    def load_kwargs(self):
        torch.set_default_dtype(torch.bfloat16)
        return {}


class Seeds(Rounded):
    @hookimpl
    def load_kwargs(self):
        torch.manual_seed(0)
        return {}


@pytest.mark.parametrize("plugin", [Rounded(), Eager(), Signs()], ids=lambda plugin: type(plugin).__name__)
def test_correct_ways_pass(plugin):
    check_load(plugin)


@pytest.mark.parametrize(
    ("plugin", "name", "message"),
    [
        (SetsTheType, "loads", "`SetsTheType` and neoplug itself both set `dtype`"),
        (Unknown, "loads", "could not be loaded; why: TypeError"),
        (StudentsAlone, "loads", "teacher"),
        (NotFinite, "loads", "not finite"),
        (OnMeta, "loads", "weights of the teacher are on meta in place of cpu"),
        (Stochastic, "repeated", "loaded again, `model.layers.0."),
        (Stochastic, "untouched", "random numbers"),
        (FourBitsAlways, "options", "`bits: 8` loads the same model as 4"),
        (OneStepTooMany, "weights", "multiplies by 0.87"),
        (WrongRow, "weights", "the weights of an output of"),
        (Transposed, "weights", "the weights of an output of `model.layers.0.self_attn.q_proj` are off by"),
        (ScalesByRow, "weights", "the weights of an output of `model.layers.0.mlp.down_proj` are off by"),
        (NewNorms, "near", "the logits are off by"),
        (RoundsInEvaluation, "modes", "in training, a logit is off by"),
        (RoundsByBatch, "documents", "with another document in the batch, a logit is off by"),
        (LLMInt8, "modes", "in training, a logit is off by"),
        (LLMInt8, "documents", "with another document in the batch, a logit is off by"),
        (CutsGradients, "gradients", "the gradient of"),
        (Drifts, "trained", "training changes 14 weights of the loaded model"),
        (Shrinks, "planned", "bytes, and"),
        (SetsTheDefault, "untouched", "it changes the default data type"),
        (Seeds, "untouched", "random numbers"),
    ],
)
def test_faults_are_found(plugin, name, message):
    with pytest.raises(Broken) as caught:
        LOAD.properties[name](plugin())
    assert message in caught.value.what
    assert torch.get_default_dtype() == torch.float32


def test_each_fault_breaks_its_property_alone():
    found = {one.name: one.verdict for one in examine(OneStepTooMany(), LOAD)}
    assert found == dict.fromkeys(LOAD.properties, "holds") | {"weights": "does not hold"}


def test_what_has_no_hook_of_loading_is_refused():
    with pytest.raises(TypeError, match="neither `load_kwargs` nor `after_load`"):
        check_load(object())
