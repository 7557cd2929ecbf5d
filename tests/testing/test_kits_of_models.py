"""The kits of adapters, optimizers, schedules, stops, treatments, probes and preparations find faults by property."""

import os
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from neoplug import AdapterTraits, hookimpl
from neoplug.testing import (
    KITS,
    OPTIMIZER,
    PREPARATION,
    PROBE,
    SCHEDULE,
    STOP,
    TREATMENT,
    check_adapter,
    check_probe,
    examine,
)

ADAPTER = KITS["add_adapter"]


def broken(plugin, kit):
    """Return the properties that do not hold."""
    return {finding.name for finding in examine(plugin, kit) if finding.verdict == "does not hold"}


class Scaled(nn.Module):
    """A layer times trained factors, 1 at the start."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.factors = layer, nn.Parameter(torch.ones(layer.out_features, device=layer.weight.device))

    def forward(self, hidden):
        return self.layer(hidden) * self.factors


@dataclass(eq=False)
class Factors:
    """An adapter without peft: trained factors of the outputs of `down_proj`."""

    traits: ClassVar = AdapterTraits(seedless="the factors start at 1")

    @hookimpl
    def add_adapter(self, model):
        for layer in model.model.layers:
            layer.mlp.down_proj = Scaled(layer.mlp.down_proj)
        return model

    @hookimpl
    def save_adapter(self, model, path):
        factors = {name: weight for name, weight in model.state_dict().items() if "factors" in name}
        torch.save(factors, path / "factors.pt")

    @hookimpl
    def load_adapter(self, model, path):
        model = self.add_adapter(model)
        model.load_state_dict(torch.load(path / "factors.pt", weights_only=True), strict=False)
        return model

    @hookimpl
    def merge_adapter(self, model):
        for layer in model.model.layers:
            scaled = layer.mlp.down_proj
            layer.mlp.down_proj = scaled.layer
            layer.mlp.down_proj.weight.data *= scaled.factors[:, None]
        return model


class StartsAtTwo(Factors):
    @hookimpl
    def add_adapter(self, model):
        model = Factors.add_adapter(self, model)
        for layer in model.model.layers:
            layer.mlp.down_proj.factors.data += 1
        return model


class DrawsGlobally(Factors):
    @hookimpl
    def add_adapter(self, model):
        model = Factors.add_adapter(self, model)
        for layer in model.model.layers:
            factors = layer.mlp.down_proj.factors
            factors.data += 1e-5 * torch.randn(factors.shape, device=factors.device)
        return model


class TrainsTheBaseToo(Factors):
    @hookimpl
    def add_adapter(self, model):
        model.model.norm.weight.requires_grad_()
        return Factors.add_adapter(self, model)


class SavesNothingOfUse(Factors):
    @hookimpl
    def load_adapter(self, model, path):
        return self.add_adapter(model)


class MergesWrongly(Factors):
    @hookimpl
    def merge_adapter(self, model):
        for layer in model.model.layers:
            layer.mlp.down_proj = layer.mlp.down_proj.layer
        return model


class MixesDocuments(Factors):
    @hookimpl
    def add_adapter(self, model):
        model = Factors.add_adapter(self, model)
        model.model.layers[0].mlp.down_proj.register_forward_hook(
            lambda layer, given, out: out + 0.1 * out.mean((0, 1))
        )
        return model


class Forgets(Factors):
    """Its rate of change depends on a count that no checkpoint has."""

    @hookimpl
    def on_step_end(self, model, step):
        self.steps = getattr(self, "steps", 0) + 1
        with torch.no_grad():
            for layer in model.model.layers:
                layer.mlp.down_proj.factors.mul_(1 + 0.01 * self.steps)


@pytest.mark.parametrize(
    ("adapter", "properties"),
    [
        (Factors, set()),
        (StartsAtTwo, {"identity", "other_widths"}),
        (DrawsGlobally, {"seeds", "checkpointed"}),
        (TrainsTheBaseToo, {"base", "saved"}),
        (SavesNothingOfUse, {"saved"}),
        (MergesWrongly, {"merged"}),
        (Forgets, {"resumed"}),
    ],
)
def test_faults_of_adapters(adapter, properties):
    assert broken(adapter(), ADAPTER) == properties


def test_an_adapter_that_mixes_documents_is_found():
    assert "accumulated" in broken(MixesDocuments(), ADAPTER)


def test_check_adapter_raises_with_the_fault():
    check_adapter(Factors())
    with pytest.raises(AssertionError, match="weights of the base"):
        check_adapter(TrainsTheBaseToo())
    with pytest.raises(TypeError, match="no `add_adapter`"):
        check_adapter(Noise())


@dataclass(eq=False)
class Momentum:
    """A correct optimizer: torch's SGD with momentum."""

    @hookimpl
    def make_optimizer(self, groups):
        return torch.optim.SGD(groups, momentum=0.9)


class OneRate(Momentum):
    @hookimpl
    def make_optimizer(self, groups):
        return torch.optim.SGD([weight for group in groups for weight in group["params"]], lr=1e-2, momentum=0.9)


class StateOutside(torch.optim.SGD):
    def __init__(self, groups):
        super().__init__(groups, momentum=0.0)
        self.memory = {}

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                kept = self.memory.setdefault(id(weight), torch.zeros_like(weight))
                kept.mul_(0.9).add_(weight.grad)
                weight.sub_(group["lr"] * kept)


class KeepsItsState(Momentum):
    @hookimpl
    def make_optimizer(self, groups):
        return StateOutside(groups)


@pytest.mark.parametrize(
    ("optimizer", "properties"), [(Momentum, set()), (OneRate, {"groups"}), (KeepsItsState, {"resumed"})]
)
def test_faults_of_optimizers(optimizer, properties):
    assert broken(optimizer(), OPTIMIZER) == properties


@dataclass(eq=False)
class Rising:
    """A correct schedule: a straight line to 1."""

    @hookimpl
    def rate(self, step, total_steps, warmup_steps):
        return min(1.0, (1 + step) / max(1, warmup_steps))


class Zero(Rising):
    @hookimpl
    def rate(self):
        return 0.0


class Negative(Rising):
    @hookimpl
    def rate(self, step, total_steps):
        return 1.0 - (step + 1) / total_steps


class FallsInTheWarmup(Rising):
    @hookimpl
    def rate(self, step, total_steps, warmup_steps):
        return 1.0 / (1 + step)


class CountsCalls(Rising):
    calls = 0

    @hookimpl
    def rate(self):
        self.calls += 1
        return 1.0 / self.calls


class DividesByZero(Rising):
    @hookimpl
    def rate(self, step, warmup_steps):
        return min(1.0, step / warmup_steps)


@pytest.mark.parametrize(
    ("schedule", "properties"),
    [
        (Rising, set()),
        (Zero, {"trains"}),
        (Negative, {"rates", "trains", "repeated"}),
        (FallsInTheWarmup, {"warmup"}),
        (CountsCalls, {"repeated"}),
        (DividesByZero, {"rates", "trains", "warmup", "repeated"}),
    ],
)
def test_faults_of_schedules(schedule, properties):
    assert broken(schedule(), SCHEDULE) == properties


@dataclass(eq=False)
class Low:
    """A correct stop: two low losses in succession."""

    def __post_init__(self):
        self.low = 0

    @hookimpl
    def should_stop(self, metrics, measured):
        self.low = 0 if measured is None and metrics["loss"] > 0.5 else self.low + (measured is None)
        return f"{self.low} low losses" if self.low > 1 else None

    def state_dict(self):
        return {"low": self.low}

    def load_state_dict(self, state):
        self.low = state["low"]


class ForgetsLow(Low):
    def load_state_dict(self, state):
        pass


class SaysYes(Low):
    @hookimpl
    def should_stop(self, metrics):
        return "\n"


class WritesLines(Low):
    @hookimpl
    def should_stop(self, metrics):
        metrics["seen"] = True


class Rolls(Low):
    @hookimpl
    def should_stop(self):
        return "luck" if np.random.rand() < 0.1 else None


@pytest.mark.parametrize(
    ("stop", "properties"),
    [
        (Low, set()),
        (ForgetsLow, {"resumed"}),
        (SaysYes, {"reasons", "resumed", "repeated"}),
        (WritesLines, {"reasons", "resumed", "repeated"}),
        (Rolls, {"repeated", "resumed"}),
    ],
)
def test_faults_of_stops(stop, properties):
    assert broken(stop(), STOP) == properties


@dataclass(eq=False)
class Noise:
    """A correct treatment: labels are swapped at random."""

    @hookimpl
    def edit_batch(self, batch, rng):
        batch.labels = batch.labels[torch.randperm(len(batch.labels), generator=rng)]


class GlobalNoise(Noise):
    @hookimpl
    def edit_batch(self, batch):
        batch.labels = batch.labels[torch.randperm(len(batch.labels))]


@dataclass(eq=False)
class Counting(Noise):
    seen: list = field(default_factory=list)

    def __post_init__(self):
        self.calls = 0

    @hookimpl
    def edit_batch(self, batch):
        self.calls += 1
        batch.labels = batch.labels.roll(self.calls)


class OfRank(Noise):
    @hookimpl
    def edit_batch(self, batch):
        batch.labels = batch.labels.roll(int(os.environ.get("RANK", "0")))


class Shortens(Noise):
    @hookimpl
    def edit_batch(self, batch):
        batch.labels = batch.labels[:1]


class WritesIntoDocuments(Noise):
    @hookimpl
    def edit_batch(self, batch):
        for document in batch.documents:
            np.asarray(document.input_ids)[0] += 1


@dataclass(eq=False)
class Reversed:
    """A correct treatment of documents: the student reads the text before its first answer backwards."""

    @hookimpl
    def edit_documents(self, documents):
        return [self.changed(document) for document in documents]

    def changed(self, document):
        first = int(np.flatnonzero(np.append(document.loss_mask[1:], True))[0])
        ids = np.append(document.input_ids[:first][::-1], document.input_ids[first:])
        teacher = document.as_teacher()
        return replace(document, input_ids=ids, teacher_ids=teacher.input_ids, teacher_loss_mask=teacher.loss_mask)


class GloballyShuffled(Reversed):
    def changed(self, document):
        ids = document.input_ids[torch.randperm(len(document))]
        teacher = document.as_teacher()
        return replace(document, input_ids=ids, teacher_ids=teacher.input_ids, teacher_loss_mask=teacher.loss_mask)


class NoisyTeacher(Reversed):
    """The student's text stays: the fault is in the teacher's alone."""

    def changed(self, document):
        text = document.as_teacher()
        ids = text.input_ids[torch.randperm(len(text))]
        return replace(document, teacher_ids=ids, teacher_loss_mask=text.loss_mask)


class LosesAnAnswer(Reversed):
    def changed(self, document):
        text = document.as_teacher()
        return replace(document, teacher_ids=text.input_ids, teacher_loss_mask=np.zeros_like(text.loss_mask))


class WritesInPlace(Reversed):
    def changed(self, document):
        document.as_teacher().loss_mask[0] ^= True
        return document


@pytest.mark.parametrize(
    ("treatment", "properties"),
    [
        (Noise, set()),
        (Reversed, set()),
        (GloballyShuffled, {"repeated", "stateless", "dealt"}),
        (NoisyTeacher, {"repeated", "stateless", "dealt"}),
        (LosesAnAnswer, {"valid", "repeated", "stateless", "dealt", "documents"}),
        (WritesInPlace, {"documents"}),
        (GlobalNoise, {"repeated", "stateless", "dealt"}),
        (Counting, {"stateless", "dealt"}),
        (OfRank, {"dealt"}),
        (Shortens, {"valid", "repeated", "stateless", "dealt", "documents"}),
        (WritesIntoDocuments, {"documents", "repeated", "stateless", "dealt"}),
    ],
)
def test_faults_of_treatments(treatment, properties):
    assert broken(treatment(), TREATMENT) == properties


@dataclass(eq=False)
class Accuracy:
    """A correct probe: the share of tokens that the model finds most probable, and their number."""

    @hookimpl
    def on_evaluate(self, model, batches, predict):
        right = [(q.argmax(-1) == labels) for batch in batches for q, labels in predict(model, batch)]
        found = torch.cat(right) if right else torch.zeros(0)
        return {"accuracy": found.double().mean().item() if len(found) else None, "tokens": len(found)}


class NotANumber(Accuracy):
    @hookimpl
    def on_evaluate(self, model, batches, predict):
        right = [(q.argmax(-1) == labels) for batch in batches for q, labels in predict(model, batch)]
        return {"accuracy": (torch.cat(right) if right else torch.zeros(0)).double().mean().item()}


class LeavesTrainingMode(Accuracy):
    @hookimpl
    def on_evaluate(self, model, teacher):
        (teacher or model).train()
        return {}


class MeanOfMeans(Accuracy):
    @hookimpl
    def on_evaluate(self, model, batches, predict):
        means = [(q.max(-1).values).mean() for batch in batches for q, _ in predict(model, batch) if len(q)]
        return {"confidence": torch.stack(means).mean().item() if means else None}


class NeedsTheTeacher(Accuracy):
    @hookimpl
    def on_evaluate(self, model, teacher):
        return {"parameters": sum(weight.numel() for weight in teacher.parameters())}


class CountsColumns(Accuracy):
    @hookimpl
    def on_evaluate(self, model, batches):
        columns = [model(input_ids=batch.input_ids[None], use_cache=False).logits.shape[1] for batch in batches]
        return {"tokens": sum(columns)}


class Bootstraps(Accuracy):
    @hookimpl
    def on_evaluate(self):
        return {"draw": float(np.random.rand())}


class Norms(Accuracy):
    """A correct probe: the mean norm of the states of each layer, and their number."""

    @hookimpl
    def on_evaluate(self, model, batches, states):
        found = [[each.norm(dim=1) for each in states(model, batch, [0, 1, -1]).values()] for batch in batches]
        first, second, last = (torch.cat(norms).double() for norms in zip(*found, strict=True))
        means = {name: each.mean().item() for name, each in (("second", second), ("last", last)) if len(each)}
        return {"tokens": len(first), **means}


class MeanOfMeansOfStates(Accuracy):
    @hookimpl
    def on_evaluate(self, model, batches, states):
        means = [states(model, batch, [1])[1].norm(dim=1).mean() for batch in batches if batch.answer_tokens]
        return {"norm": torch.stack(means).mean().item() if means else None}


class LeavesAHook(Accuracy):
    @hookimpl
    def on_evaluate(self, model):
        next(model.children()).register_forward_hook(lambda layer, given, output: None)
        return {}


class RecordsColumnsItself(Accuracy):
    """Its hook counts the columns of virtual tokens too."""

    @hookimpl
    def on_evaluate(self, model, batches, states):
        sizes = []
        layer = next(part for name, part in model.named_modules() if name.endswith("layers.0"))
        hook = layer.register_forward_hook(lambda layer, given, output: sizes.append(output.shape[1]))
        for batch in batches:
            states(model, batch, [0])
        hook.remove()
        return {"tokens": sum(sizes) if len(batches) > 1 else None}


class ChangesTheLoadedModel(Accuracy):
    @hookimpl
    def after_load(self, model):
        self.loaded = model

    @hookimpl
    def on_evaluate(self):
        self.loaded.lm_head.weight.data += 1
        return {}


@pytest.mark.parametrize(
    ("probe", "properties"),
    [
        (Accuracy, set()),
        (Norms, set()),
        (MeanOfMeansOfStates, {"batches"}),
        (LeavesAHook, {"untouched"}),
        (RecordsColumnsItself, {"batches", "virtual_tokens"}),
        (ChangesTheLoadedModel, {"untouched"}),
        (NotANumber, {"numbers"}),
        (LeavesTrainingMode, {"untouched"}),
        (MeanOfMeans, {"batches"}),
        (NeedsTheTeacher, {"without_teacher"}),
        (CountsColumns, {"virtual_tokens"}),
        (Bootstraps, {"untouched", "repeated", "batches", "virtual_tokens"}),
    ],
)
def test_faults_of_probes(probe, properties):
    assert broken(probe(), PROBE) == properties


def test_check_probe_raises_with_the_fault():
    with pytest.raises(AssertionError, match="return None"):
        check_probe(NotANumber())


@dataclass(eq=False)
class Halves:
    """A correct preparation: the first half of the layers is kept."""

    @hookimpl
    def prepare_student(self, model):
        del model.model.layers[len(model.model.layers) // 2 :]
        model.config.num_hidden_layers = len(model.model.layers)


class OldConfiguration(Halves):
    @hookimpl
    def prepare_student(self, model):
        del model.model.layers[2:]


class RandomWeights(Halves):
    @hookimpl
    def prepare_student(self, model):
        model.model.norm.weight.data += 0.1 * torch.rand(model.model.norm.weight.shape, device=model.device)


class OnlyWithData(Halves):
    @hookimpl
    def prepare_student(self, model, batches):
        if batches is not None:
            Halves.prepare_student(self, model)


class Infinite(Halves):
    @hookimpl
    def prepare_student(self, model):
        model.model.norm.weight.data *= torch.inf


@pytest.mark.parametrize(
    ("preparation", "properties"),
    [
        (Halves, set()),
        (OldConfiguration, {"saved"}),
        (RandomWeights, {"repeated"}),
        (OnlyWithData, {"planned"}),
        (Infinite, {"computes"}),
    ],
)
def test_faults_of_preparations(preparation, properties):
    assert broken(preparation(), PREPARATION) == properties
