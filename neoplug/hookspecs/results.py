"""Hooks of evaluations, and of what is saved.

N answer tokens of a batch, V shared vocabulary, H hidden size; the package has the run in pseudocode and the legend of
all hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.answers.rules import answers, returns, version_added
from neoplug.hookspecs.markers import hookspec

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neoplug.data.batch import Batch


@hookspec
@answers("all")
@returns("json")
@version_added("0.1")
def on_evaluate(
    model: torch.nn.Module,
    teacher: torch.nn.Module | None,
    batches: Iterable[Batch],
    predict: Callable[[torch.nn.Module, Batch], Iterator[tuple[Tensor, Tensor]]],
    tokenizer: PreTrainedTokenizerBase,
    states: Callable[[torch.nn.Module, Batch, Iterable[int]], dict[int, Tensor]],
) -> dict[str, Any]:
    """Evaluate the model on held-out text or on other data; the result is stored as `probes.NAME`.

    Called in evaluation mode, without gradients. Before training it is called once more with the teacher as `model`,
    for `teacher.probes` of the result: evaluate `model`, and use `teacher` only to compare the two.

    model, teacher  the modules, heads in place; teacher is None where the recipe has none or the teacher is `model`.
                    A teacher that is the student itself is another module, which runs that of the student,
                    its `module`, in another state: with the adapter off, or with averaged weights
    batches         held-out batches on the device; may be iterated over several times
    predict         predict(model, batch) yields (log-probabilities [n, V] float32, labels [n]) for each chunk of the
                    batch's answer tokens, in order. The batch may come from `neoplug.collate`; V is the vocabulary that
                    teacher and student share
    tokenizer       of the student; a shared token has the same id in the teacher
    states          states(model, batch, layers) returns {layer: hidden states [N, H] float32} at the positions that
                    predict the batch's answer tokens, in order. Layers are numbered as `hidden_states` of transformers:
                    0 the embeddings, i the output of the i-th layer, the last one what the output head reads, after the
                    final norm; -1 is the last, -2 the one before
    returns         numbers (also of numpy, and tensors of no dimension), text, lists and maps that JSON can hold
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("tensors by name")
@version_added("0.1")
def base_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return the base weights of an adapter that changed them, where the adapter's files cannot restore the original.

    The run stores them as `student/`, next to the adapter. Called once, at the end, on the main process.

    model    the trained model
    returns  all weights of the student without adapter, by its own names, without copying: neoplug only reads them
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("files")
@version_added("0.1")
def save_adapter(model: torch.nn.Module, path: Path) -> None:
    """Write the adapter to the existing folder `path`, in files that can be loaded on the original base.

    A plugin that writes other files than peft's implements `load_adapter` too. Without this hook neoplug writes peft's
    files; or the whole model, where the adapter is not of peft and adds neither modules nor weights.
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("module")
@version_added("0.1")
def load_adapter(model: PreTrainedModel, path: Path) -> torch.nn.Module:
    """Return the model with the adapter in the folder `path`, which `save_adapter` wrote. Without it, peft reads it.

    The dry run of saving, the comparison at the end of a run, `eval` and `export` build the adapter with it.

    model    frozen and on its device, without adapter, as in `add_adapter`; never on the meta device
    returns  a module with the model's call signature; neoplug casts trainable parameters to float32
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("transformers model")
@version_added("0.1")
def merge_adapter(model: torch.nn.Module) -> PreTrainedModel:
    """Return a plain transformers model equivalent to `model`. Without this hook neoplug uses peft's merge."""
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def on_save(model: torch.nn.Module, path: Path) -> None:
    """Write further files into the checkpoint folder `path`, which is renamed into place afterwards.

    Called on the main process.

    model  the model in training
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("added keys")
@version_added("0.1")
def on_train_end(model: torch.nn.Module, result: dict[str, Any]) -> None:
    """Read the result before it is written, and add keys; existing keys must not change. Called on every rank.

    model   the trained model
    result  what result.json will hold
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def close_tracker() -> None:
    """Write what is buffered, and end the record of the run. Called on the main process, however the run ends."""
    raise NotImplementedError
