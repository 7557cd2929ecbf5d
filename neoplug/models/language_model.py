"""A model's own forward without its head: hidden states where an answer is predicted, and the head as a function.

B rows and L columns that a model reads, N answer tokens, H hidden size, V shared vocabulary.
The head is found by its place in the bare model, so that an adapter may wrap the model or the head itself. Nothing is
taken on trust: that the head function equals the model's own logits, and that documents of one row do not see each
other, is proved on the model at hand before it is used.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from neoplug.models.varlen_attention import use_own, use_varlen
from neoplug.data.batch import EVERYTHING, Batch, Document, Layout, Windows, collate
from neoplug.errors import RunError
from neoplug.models import virtual_tokens
from neoplug.models.vocabulary import Vocabulary

logger = logging.getLogger("neoplug")

# How much two computations of one thing may differ, relative to its largest value: logits of the same hidden states,
# and hidden states of the same document laid out differently. That documents do not move each other is held to EXACT.
LOGITS = {torch.float32: 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
STATES = {torch.float32: 1e-3, torch.float16: 4e-2, torch.bfloat16: 1.5e-1}
EXACT = 1e-5

CANNOT_READ = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # what models raise of a strange mask


class FrozenLinear(torch.autograd.Function):
    """Float32 logits of a frozen head, without a rounding of logits in between and without a gradient of the weight."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, hidden: Tensor, weight: Tensor, bias: Tensor | None, room: torch.UntypedStorage
    ) -> Tensor:
        """[n, H], [V, H], [V] -> [n, V] float32, in `room` if the weight is float32: it grows to hold them."""
        ctx.save_for_backward(weight)
        ctx.dtype = hidden.dtype
        if weight.dtype == torch.float32:
            logits = weight.new_empty(0).set_(room).resize_(len(hidden), len(weight))
            torch.mm(hidden.float(), weight.t(), out=logits)
        else:
            logits = torch.mm(hidden.to(weight.dtype), weight.t(), out_dtype=torch.float32)
        return logits if bias is None else logits.add_(bias)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[no-untyped-def]
        """[n, V] -> [n, H]."""
        (weight,) = ctx.saved_tensors
        return (gradient.to(weight.dtype) @ weight).to(ctx.dtype), None, None, None


@dataclass(eq=False)
class Head:
    """The output head as a function: hidden states [n, H] -> float32 logits [n, V] over the shared vocabulary.

    module      the model's output embedding, or what an adapter put in its place
    multiplier  what the model multiplies its logits by (Granite, Cohere, Falcon-H1)
    cap         soft cap of the logits (Gemma): cap * tanh(logits / cap)
    """

    module: nn.Module
    vocabulary: Vocabulary
    multiplier: float = 1.0
    cap: float | None = None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return logits [n, V] in float32, with a graph where gradients are enabled."""
        return self.opened()(hidden)

    def opened(self) -> Callable[[Tensor], Tensor]:
        """Return the same function for many blocks: what each would do to the weights is done once. Use it, drop it.

        A call may overwrite what the one before returned: blocks share their memory, and an allocator need not find
        64 MiB anew among what came to lie between.
        """
        shared = self._linear(self.module) if type(self.module) is nn.Linear else self._adapted()

        def logits_of(hidden: Tensor) -> Tensor:
            logits = shared(hidden)
            if self.multiplier != 1.0:
                logits = logits * self.multiplier
            return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

        return logits_of

    def parameters(self) -> list[nn.Parameter]:
        """Return the head's trainable parameters: none for a frozen head."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def _linear(self, module: nn.Linear) -> Callable[[Tensor], Tensor]:
        weight, bias = module.weight, module.bias
        if self.parameters():
            return lambda hidden: functional.linear(hidden.float(), self._rows(weight).float(), self._rows(bias))
        frozen, frozen_bias = self._rows(weight), self._rows(bias)
        if not weight.is_cuda:  # only there a product of 16-bit numbers can give float32
            frozen = frozen.float()
        room = frozen.new_empty(0, dtype=torch.float32).untyped_storage()
        return lambda hidden: FrozenLinear.apply(hidden, frozen, frozen_bias, room)

    def _adapted(self) -> Callable[[Tensor], Tensor]:
        """Return the head as an adapter changed it, 16-bit weights widened: logits rounded to bf16 spoil the loss."""
        narrow = (torch.float16, torch.bfloat16)
        wide = {name: weight.float() for name, weight in self.module.named_parameters() if weight.dtype in narrow}

        def logits_of(hidden: Tensor) -> Tensor:
            logits: Tensor = functional_call(self.module, wide, (hidden.float(),))
            return self._rows(logits.float().t()).t() * 1  # a buffer of its own: the objective overwrites it

        return logits_of

    def _rows(self, values: Any) -> Any:
        """Return those of the head's rows, the first dimension of `values`, that stand for a shared token."""
        if values is None or self.vocabulary.size == len(values):
            return values
        if self.vocabulary.ids is None:
            return values[: self.vocabulary.size]
        return values.index_select(0, self.vocabulary.ids_on(values.device))


@dataclass(eq=False)
class LanguageModel:
    """A model as the objective uses it: hidden states of a batch's answer positions, and a head.

    module        the model itself, its head in place
    layout        how it reads a batch; the first of LAYOUTS that keeps documents apart
    windows       how far each kind of its attention layers looks back: a block mask says so itself
    autocast      what it computes in; None is its own dtype, without autocast
    pad_token_id  fills padded rows
    """

    module: nn.Module
    head: Head
    device: torch.device
    layout: Layout = "padded"
    windows: Windows = field(default_factory=lambda: EVERYTHING)
    autocast: torch.dtype | None = None
    pad_token_id: int = 0

    def hidden(self, batch: Batch) -> Tensor:
        """Return the hidden states [N, H] that predict the batch's answer tokens."""
        dtype = self.autocast or next(p.dtype for p in self.module.parameters() if p.is_floating_point())
        return self._record(*batch.layout(self.layout, self.pad_token_id, self.windows, dtype))

    def computing(self) -> torch.autocast:
        """Return the context in which the model computes."""
        return torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None)

    def _record(self, inputs: dict[str, Any], positions: Tensor) -> Tensor:
        with self.computing(), recording(self.head.module, positions, inputs["input_ids"].shape[1]) as recorded:
            self.module(**inputs)
        return recorded[0]


@contextmanager
def recording(head: nn.Module, positions: Tensor, length: int) -> Iterator[list[Tensor]]:
    """Let `head` keep the hidden states at `positions` of the last `length` columns, and skip its matmul.

    Counted from the right, since prompt methods put columns of their own before the text.
    """
    recorded: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        recorded.append(hidden[:, -length:].reshape(-1, hidden.shape[-1]).index_select(0, positions))
        return hidden[..., :1].detach()

    own = vars(head).get("forward")  # accelerate's hooks put one there
    head.forward = record
    try:
        yield recorded
    finally:
        del head.forward
        if own is not None:
            head.forward = own


def head_name(model: nn.Module) -> str:
    """Return where the output head stands in a bare transformers model, as `lm_head`. Raises RunError without one."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = find() if find else None
    names = [name for name, module in model.named_modules() if module is head]
    if head is None or not names:
        raise RunError(
            f"{type(model).__name__} shows no output head\nwhy: without it no token can be scored\n"
            "fix: choose a model whose `get_output_embeddings` returns its head"
        )
    return names[0]


def language_model(
    module: nn.Module,
    name: str,
    vocabulary: Vocabulary,
    *,
    autocast: torch.dtype | None = None,
    role: str = "student",
    longest: int = 0,
) -> LanguageModel:
    """Find the head called `name` in the bare model, prove it and the way documents are kept apart.

    longest  tokens of the longest document that the model will read: a window of attention that is shorter is proved

    Raises:
        RunError: the head function does not equal the model's own logits, or no layout isolates documents.
    """
    found = [part for path, part in module.named_modules() if path == name or path.endswith(f".{name}")]
    if not found:
        raise RunError(
            f"the adapter hides the {role}'s output head `{name}`\nwhy: the objective needs it to score tokens\n"
            "fix: let the adapter keep the base model, or its own head, under that name"
        )
    parameter = next(module.parameters())
    own: Any = getattr(module, "config", None)
    config = own.get_text_config() if own is not None else None
    head = Head(found[0], vocabulary, _multiplier(config), getattr(config, "final_logit_softcapping", None))
    pad = getattr(config, "pad_token_id", None)
    model = LanguageModel(
        module, head, parameter.device, windows=_windows(config), autocast=autocast, pad_token_id=pad if pad else 0
    )
    training = module.training
    module.eval()
    with torch.no_grad():
        _prove_head(model, role)
        model.layout = _isolating_layout(model, role, _proving_length(config, longest))
    module.train(training)
    return model


def _multiplier(config: object) -> float:
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale *= getattr(config, "lm_head_multiplier", None) or 1.0  # Falcon-H1
    return scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite


def _windows(config: object) -> Windows:
    """Return how far each kind of attention layer looks back, as transformers names the kinds."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return {kind: window if kind == "sliding_attention" else None for kind in kinds}


def _proving_length(config: object, longest: int) -> int:
    """Return how long a document must be to show a window of attention, where the data's documents are longer."""
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    windows = [window for name in names if isinstance(window := getattr(config, name, None), int) and window < longest]
    return max(9, min(longest, 3 * max(windows, default=0) // 2 + 8))


def _sample(model: LanguageModel, length: int, seed: int) -> Document:
    """Return a document of random tokens that both models know."""
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(model.head.vocabulary.size, (length,), generator=rng)
    ids = model.head.vocabulary.ids
    tokens = drawn if ids is None else ids.cpu()[drawn]
    return Document(tokens.numpy(), torch.ones(length, dtype=torch.bool).numpy(), row=0)


def _prove_head(model: LanguageModel, role: str) -> None:
    batch = collate([_sample(model, 9, seed=0)]).to(model.device)
    inputs, positions = batch.layout("padded", model.pad_token_id)
    with model.computing():
        logits = model.module(**inputs).logits
    own = logits[0, -inputs["input_ids"].shape[1] :].float().index_select(0, positions)
    ids = model.head.vocabulary.ids
    own = own[:, : model.head.vocabulary.size] if ids is None else own.index_select(-1, ids.to(own.device))
    ours = model.head(model._record(inputs, positions))
    if not _off(ours, own) <= LOGITS[logits.dtype]:  # NaN is no proof either
        raise RunError(
            f"the {role}'s head is no function of its hidden states that neoplug knows: "
            f"it differs from the model's own logits by {(ours - own).abs().max():.3g}\n"
            "why: the objective never holds the vocabulary, so it needs the head as a function\n"
            "fix: choose another model, or ask for this family"
        )


LAYOUTS: dict[Layout, str] = {
    "varlen": "attention is computed inside each document of one row",
    "flat": "position_ids keep documents of one row apart",
    "block": "a block mask keeps documents of one row apart",
    "padded": "each document has a row of its own",
}


def _isolating_layout(model: LanguageModel, role: str, length: int) -> Layout:
    """Return the first layout under which documents do not see each other; say which, and why none before it."""
    refused: list[str] = []
    layouts, tokens = dict(LAYOUTS), virtual_tokens(model.module)
    if tokens:
        layouts = {"padded": LAYOUTS["padded"]}
        refused.append(f"not in one row, since the {tokens} virtual tokens of its adapter stand before a row alone")
    elif model.device.type != "cpu" or not _takes_lengths(model, length):
        layouts.pop("varlen", None)  # on a GPU its calls, one for each length, would have to be measured first
    for layout, means in layouts.items():
        found = leak(replace(model, layout=layout), length)
        if found is None:
            logger.info("%s: layout %s, %s%s", role, layout, means, "".join(f"; {why}" for why in refused))
            return layout
        refused.append(f"not {layout}, since {found}")
        if layout == "varlen":
            use_own(model.module)
    raise RunError(
        f"the {role} reads a document differently beside another, in one row and in padded rows\n"
        f"why: then what it learns depends on how documents fall together ({'; '.join(refused)})\n"
        "fix: choose another model"
    )


def _takes_lengths(model: LanguageModel, length: int) -> bool:
    """Let the model attend inside documents where lengths say so; tell whether all else is as it was."""
    padded, batch = replace(model, layout="padded"), collate([_sample(model, length, seed=4)]).to(model.device)
    before = padded.hidden(batch)
    if not use_varlen(model.module):
        return False
    try:
        if _off(padded.hidden(batch), before) <= EXACT:
            return True
    except CANNOT_READ:
        pass  # parts of it attended in different ways
    use_own(model.module)
    return False


def leak(model: LanguageModel, length: int) -> str | None:
    """Return how two documents disturb each other in the model's layout; None where it is proved that they do not.

    Each must be read as if alone, and the second, of `length` tokens, not be moved at all by what the first says.
    """
    first, other, second = (_sample(model, n, seed) for n, seed in ((6, 1), (6, 2), (length, 3)))
    try:
        beside, changed = (model.hidden(collate([document, second]).to(model.device)) for document in (first, other))
    except CANNOT_READ as error:
        if model.layout == "padded":
            raise
        return f"the model cannot read it ({type(error).__name__})"
    padded = replace(model, layout="padded")
    alone = torch.cat([padded.hidden(collate([document]).to(model.device)) for document in (first, second)])
    moved = _off(beside[len(first) - 1 :], changed[len(first) - 1 :])
    if not moved <= EXACT:  # NaN is no proof either
        return f"one document moves another's states by {moved:.2g} of the largest"
    off = _off(beside, alone)
    if not off <= STATES[model.autocast or alone.dtype]:
        return f"a document's states are {off:.2g} of the largest off what they are alone"
    return None


def _off(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max().clamp(min=1e-6))
