"""Recording of hidden states: those that a model passes to its output head, and those of its layers.

Logits are not computed. N positions of a batch, H hidden size.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from neoplug.errors import RunError


@contextmanager
def recording(head: nn.Module, positions: Tensor, length: int) -> Iterator[list[Tensor]]:
    """Replace the forward method of `head` by one that records its input and computes no logits.

    positions  [N] int64, indices into the batch's last `length` columns, flattened to one row
    length     columns of the text; adapters with virtual tokens put further columns before it

    Yields a list that receives the hidden states [N, H] at `positions` in each forward pass.
    """
    recorded: list[Tensor] = []

    def record(hidden: Tensor) -> Tensor:
        recorded.append(_at(positions, length, hidden))
        return hidden[..., :1].detach()  # in place of the logits: one column

    replaced = vars(head).get("forward")  # accelerate's hooks set `forward` on the instance
    head.forward = record
    try:
        yield recorded
    finally:
        del head.forward
        if replaced is not None:
            head.forward = replaced


@contextmanager
def recording_layers(
    layers: nn.ModuleList, numbers: Iterable[int], positions: Tensor, length: int
) -> Iterator[dict[int, Tensor]]:
    """Record hidden states of a model's layers with hooks, which are removed at the end.

    layers             from `decoder_layers`
    numbers            0 is the input of the first layer, i the output of the i-th, counted from 1
    positions, length  as for `recording`

    Yields a map that receives, by number, the hidden states [N, H] at `positions` in the last forward pass.
    """
    recorded: dict[int, Tensor] = {}

    def record_input(_: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        recorded[0] = _at(positions, length, given[0] if given else named["hidden_states"])

    def recorder_of(number: int) -> Any:
        def record_output(_layer: nn.Module, _given: Any, output: Any) -> None:
            recorded[number] = _at(positions, length, output[0] if isinstance(output, tuple) else output)

        return record_output

    with ExitStack() as hooks:
        for number in numbers:
            if number == 0:
                hooks.enter_context(layers[0].register_forward_pre_hook(record_input, with_kwargs=True))
            else:
                hooks.enter_context(layers[number - 1].register_forward_hook(recorder_of(number)))
        yield recorded


def decoder_layers(module: nn.Module) -> nn.ModuleList:
    """Return the decoder layers of a transformers model, which an adapter may wrap.

    Raises:
        RunError: its class does not have them as one list.
    """
    from transformers import PreTrainedModel

    model: Any = next((part for part in module.modules() if isinstance(part, PreTrainedModel)), None)
    if model is not None:
        count = model.config.get_text_config().num_hidden_layers
        for child in model.get_decoder().children():
            if isinstance(child, nn.ModuleList) and len(child) == count:
                return child
    raise RunError(
        f"the layers of {type(model or module).__name__} cannot be found\n"
        "why: a probe reads their hidden states, and the model's class does not have its layers as one list\n"
        "fix: leave the probe out for this model"
    )


def _at(positions: Tensor, length: int, hidden: Tensor) -> Tensor:
    """Return the states [N, H] at `positions` of the last `length` columns of [B, L, H]."""
    return hidden[:, -length:].reshape(-1, hidden.shape[-1]).index_select(0, positions)
