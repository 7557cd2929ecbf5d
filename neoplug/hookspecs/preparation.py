"""Hooks that are called before the first step: checks, models, the teacher's cache, the adapter, the optimizer.

N answer tokens, V shared vocabulary; the package has the run in pseudocode and the legend of all hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neoplug.answers.rules import answers, returns, version_added
from neoplug.hookspecs.markers import Role, Source, hookspec

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
    from transformers import PreTrainedModel

    from neoplug.data.batch import Batch
    from neoplug.errors import Problem
    from neoplug.models.head import Head
    from neoplug.recipe.schema import Recipe
    from neoplug.teachers.base import Signal


@hookspec
@answers("all")
@returns("problems")
@version_added("0.1")
def check(recipe: Recipe) -> list[Problem]:
    """Return the problems of using this plugin in this recipe. Called once, before models or data are read.

    Importing torch here makes every command that checks a recipe slower.

    recipe   the typed recipe, read-only; `recipe.student.load` is a map plugin name -> options, and so on
    returns  problems, or an empty list; `Problem.path`, as ("adapter", "pissa"), gives the line in the recipe
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("source")
@version_added("0.1")
def open_source() -> Source:
    """Return the rows of a source of `data`, and what identifies them. Called once, before models are found.

    The first rows are read at once, all rows where no earlier run stored their tokens. Stored tokens are found by
    `identity` and the code of the plugin's file, so `identity` has all else that may change the rows.

    returns  `neoplug.Source(rows, identity)`, or an object with these two methods. A row is a map from column to value,
             as of a line of jsonl: text, numbers, lists, maps. Raise `OptionError` for an option that is wrong
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def prepare_student(model: PreTrainedModel, batches: Iterable[Batch] | None, rng: Generator) -> None:
    """Change the student in place before it is trained, for example by pruning. The result is cached by content hash.

    model    in float32 on the CPU; on the meta device in `plan` and in the dry run that precedes loading. Update
             `model.config` with what changes, since the stored model is loaded with it
    batches  iterator of training micro-batches in the recipe's order; None on the meta device
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("keyword arguments")
@version_added("0.1")
def load_kwargs(role: Role) -> dict[str, Any]:
    """Return keyword arguments for `from_pretrained`. The same argument from two plugins is an error.

    role  of the model whose `load` section names the plugin
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("numbers")
@version_added("0.1")
def fit_cache(states: Tensor, logits: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Return numbers that `encode_teacher` and `decode_teacher` need, fitted once when a teacher's cache is begun.

    states  [N, H] float32: the teacher's last hidden states at answer tokens of a sample of the training rows
    logits  logits(states[rows]) -> [n, V] float32 over the shared vocabulary; a call may overwrite the last result
    returns {name: number}; they are stored in the cache's header, so that later documents do not change them
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("tensors by name")
@version_added("0.1")
def encode_teacher(
    states: Tensor, logits: Callable[[Tensor], Tensor], fitted: dict[str, Any], rng: Generator
) -> dict[str, Tensor]:
    """Return what the teacher's cache stores of one document, as tensors of any dtype and shape on the CPU.

    The class has an attribute or property `serves`: the largest of "linear", "buckets" and "full" that a loss may read
    (`reads_teacher`), and may have an option `draws`: how many times each document is encoded, with other random
    numbers; epoch e of a run reads draw e mod draws. An attribute `format` (1 without one) is a number that changes
    with what the class stores: records of another number are not read.

    states, logits  as for `fit_cache`, of the document's N answer tokens
    fitted          returned by `fit_cache`; empty without it
    rng             seeded by the content of the document and the draw, so that other documents change nothing
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("signal")
@version_added("0.1")
def decode_teacher(stored: list[dict[str, Tensor]], head: Head, fitted: dict[str, Any]) -> Signal:
    """Return the teacher's signal of all answer tokens of some documents from what `encode_teacher` returned of each.

    stored   in the order of the documents
    head     of the teacher: hidden states -> logits over the shared vocabulary
    fitted   as for `encode_teacher`
    returns  a signal that provides logits or entries: `neoplug.StatesSignal` or `neoplug.EntriesSignal`
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("folder")
@version_added("0.1")
def cache_folder() -> Path:
    """Return the folder of a complete cache that `neoplug cache --output` wrote; the teacher's model is not needed."""
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def open_tracker(path: Path, config: dict[str, Any], group: str | None) -> None:
    """Begin to record a run. Called on the main process before models are loaded, and again when a run is resumed.

    An error of this hook, of `on_log`, `on_measured` or `close_tracker` ends no run: it is logged, and these hooks of
    the plugin are not called again.

    path    the run directory, whose name is that of the run. A tracker that writes files there has a folder of its own
            in `path / "trackers"`
    config  a copy of the resolved recipe
    group   what the run belongs to, such as the name of a study; None: nothing
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("nothing")
@version_added("0.1")
def after_load(model: PreTrainedModel, role: Role) -> None:
    """Change a loaded model in place, for example to prepare it for k-bit training.

    A plugin in a `load` section is called for that section's model, any other plugin for both models.

    model  frozen and on its device, without adapter
    role   of the model
    """
    raise NotImplementedError


@hookspec
@answers("exactly one")
@returns("module")
@version_added("0.1")
def add_adapter(
    model: PreTrainedModel, batches: Iterable[Batch] | None, total_steps: int, rng: Generator
) -> torch.nn.Module:
    """Add the adapter and return the model to train: its trainable parameters are those with `requires_grad`.

    model        frozen; on the meta device in `plan` and in the dry run that precedes loading
    batches      iterator of training micro-batches in the recipe's order; None on the meta device
    total_steps  optimizer steps of the whole run
    returns      a module with the model's call signature; neoplug casts trainable parameters to float32
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
@returns("parameter groups")
@version_added("0.1")
def param_groups(model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Return torch optimizer groups (`params`, `lr`, ...) that cover each trainable parameter exactly once.

    model          returned by `add_adapter`
    learning_rate  of the recipe, the base of all groups' `lr`
    """
    raise NotImplementedError


@hookspec
@answers("exactly one")
@returns("optimizer")
@version_added("0.1")
def make_optimizer(groups: list[dict[str, Any]], model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return a torch optimizer over `groups`.

    groups  each has `params` and `lr`; together they hold all trainable parameters
    model   returned by `add_adapter`, for the names and modules of parameters; on the meta device in `plan` and in the
            dry run that precedes loading
    """
    raise NotImplementedError
