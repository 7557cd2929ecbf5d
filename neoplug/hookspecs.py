"""Hook specifications: a run in pseudocode with each hook at its place, then the hooks in call order.

    recipe = read(RECIPE, overrides)
    check(recipe)                                                   before anything is loaded
    rows = tokenise(recipe.data);  train, held_out = split(rows)
    on the meta device, without data:                               a dry run, before weights are loaded
        load_kwargs("teacher");  load_kwargs("student");  prepare_student(student, None, rng)
        model = add_adapter(student, None, total_steps, rng)
        groups = param_groups(model, learning_rate);  make_optimizer(groups, model)
    student = load in full precision
    prepare_student(student, batches, rng)                          pruning; cached, then loaded like any model
    for role in teacher, student:
        model = load(**load_kwargs(role))                           quantisation
        after_load(model, role)
    for model in teacher, student:
        on_evaluate(model, teacher, ...)                            evaluation metrics and probes, before training
    model = add_adapter(student, batches, total_steps, rng)         everything else is frozen
    base_weights(model);  save_adapter(model, path)                 tried once, in a folder that is removed
    load_kwargs("student");  after_load(copy, "student");  load_adapter(copy, path)    logits are compared
    groups = param_groups(model, learning_rate);  optimizer = make_optimizer(groups, model)
    state_dict();  on_save(model, path);  load_state_dict(state)    likewise
    for step in range(max_steps):
        for batch in the step's micro-batches:                      all edits of a step come before its first loss
            edit_batch(batch, progress, rng)
        for batch in the step's micro-batches:
            for chunk of the batch's answer tokens:
                token_gradient(student, teacher, labels, progress)  of the losses with a closed form
                token_loss(student, teacher, labels, progress)      of the other losses
                token_weight(student, teacher, labels, position, progress)    times loss and gradient of each token
        divide by the step's answer tokens
        penalty(model, progress)                                    added to the loss, once a step
        clip, optimizer.step()
        on_step_end(step, progress, model, metrics, name)
        every eval_steps, but not after the last step:
            on_evaluate(model, teacher, ...)
        every save_steps, and after the last step:
            state_dict();  on_save(model, path)
    on_evaluate(model, teacher, ...)
    base_weights(model);  save_adapter(model, path);  on_train_end(model, result)
    load_kwargs("student");  after_load(copy, "student");  load_adapter(copy, path)    logits are compared
    in `neoplug export`, after the run:
        model = load_adapter(student, path);  merge_adapter(model)
    in `neoplug preview`, without models:
        check(recipe);  edit_batch(batch, progress, rng)            for each micro-batch that it shows

A plugin is a dataclass whose fields are its options; a method with a hook's name and `@hookimpl` implements that hook
and takes any subset of the hook's arguments, by name. Plugins are called in the order of their names, those marked
`@hookimpl(tryfirst=True)` before and `@hookimpl(trylast=True)` after all others.

N answer tokens of one chunk, V shared vocabulary. `model` is the transformers (or peft) module, head in place. `rng`
is a torch.Generator on the CPU, seeded by (seed, plugin name), so that one plugin's draws do not change another's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pluggy

from neoplug.answers.rules import answers, returns, version_added

if TYPE_CHECKING:
    import torch
    from torch import Generator, Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from neoplug.data.batch import Batch
    from neoplug.errors import Problem
    from neoplug.recipe.schema import Recipe

hookspec = pluggy.HookspecMarker("neoplug")
hookimpl = pluggy.HookimplMarker("neoplug")

Role = Literal["teacher", "student"]

# Recipe section -> hooks, of which a plugin named in the section must implement at least one.
HOOKS_OF_SECTION: dict[str, tuple[str, ...]] = {
    "load": ("load_kwargs", "after_load"),
    "prepare": ("prepare_student",),
    "adapter": ("add_adapter", "param_groups", "penalty", "on_step_end"),
    "loss": ("token_loss",),
    "token_weights": ("token_weight",),
    "optimizer": ("make_optimizer", "param_groups"),
    "treatments": ("edit_batch", "penalty", "on_step_end", "prepare_student", "after_load", "on_train_end"),
    "probes": ("on_evaluate", "on_step_end", "on_save", "on_train_end"),
}


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


@hookspec
@answers("all")
@returns("edited batch")
@version_added("0.1")
def edit_batch(batch: Batch, progress: float, rng: Generator) -> None:
    """Change a training micro-batch in place, on the CPU, before the forward passes of teacher and student.

    batch     a `neoplug.Batch`: `labels` [N] and `input_ids` [T] may be rewritten; shortening `positions`, `labels`
              and `rows` together drops answer tokens from the objective. Tokens are those that the models share, and
              with token weights documents keep their lengths and answer tokens their positions
    progress  0.0 at the first optimizer step, 1.0 at the last
    rng       seeded by (seed, plugin name, step, micro-batch), so a resumed run draws the same numbers
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensor", shapes=("N",), gradient=True, read_only=("student", "teacher", "labels"))
@version_added("0.1")
def token_loss(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Return the loss of each token. Called for each chunk of answer tokens, several times a step.

    student   [N, V] float32 log-probabilities at temperature 1, with gradient
    teacher   [N, V] float32 log-probabilities without gradient, read-only
    labels    [N] int64; masked positions are already removed
    progress  0.0 at the first optimizer step, 1.0 at the last
    returns   [N] float32 nats, finite, with a gradient to `student`, without mean, mask, shift or weight: the loop
              applies these to all losses alike
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
@returns("tensors", shapes=("N", "N V"), read_only=("student", "teacher", "labels"))
@version_added("0.1")
def token_gradient(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Return the loss of each token and its closed-form gradient. Optional next to `token_loss`; faster than autograd.

    Called under `torch.no_grad`.

    student, teacher, labels, progress   as for `token_loss`, but without gradient
    returns   [N] the loss and [N, V] its gradient with respect to the student's *logits* (not log-probabilities)
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("tensor", shapes=("N",), read_only=("student", "teacher", "labels"))
@version_added("0.1")
def token_weight(student: Tensor, teacher: Tensor, labels: Tensor, position: Tensor, progress: float) -> Tensor:
    """Return the weight of each answer token. Weights of several plugins are multiplied; `torch.no_grad` is on.

    A weight multiplies the loss and gradient of its token, for all losses alike. The loop still divides by the number
    of answer tokens, so weights whose mean is not 1 change the size of the step; `loss` and `losses` of the metrics are
    weighted.

    student, teacher, labels, progress   as for `token_loss`, but without gradient and read-only
    position  [N] int64, 0 for the first token of its answer. An answer is a maximal run of answer tokens: an
              assistant's turn with its end token, or with `train_on: all` the document. Dropping or rewriting labels
              does not change positions; those of a window of a long document start at the window
    returns   [N] float32, finite and at least 0; any other value ends the run at the next log line
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("scalar", gradient=True)
@version_added("0.1")
def penalty(model: torch.nn.Module, progress: float) -> Tensor:
    """Return a scalar, with gradient, that is added to the loss once an optimizer step; logged separately from `loss`.

    model     returned by `add_adapter`
    progress  0.0 at the first optimizer step, 1.0 at the last
    """
    raise NotImplementedError


@hookspec
@answers("all")
@returns("numbers")
@version_added("0.1")
def on_step_end(
    step: int, progress: float, model: torch.nn.Module, metrics: dict[str, Any], name: str
) -> dict[str, Any] | None:
    """Called after each optimizer step, before gradients are set to zero.

    step      1 after the first optimizer step
    progress  that of this step's losses: 0.0 at the first optimizer step, 1.0 at the last
    model     returned by `add_adapter`
    metrics   of this step: `step`, `counts` [2] int64 (answer tokens, tokens), `sums` [K] float32 nats summed over
              answer tokens in the order of the losses' names, `losses` {name: nats per answer token}, `grad_norm`,
              `penalty`; tensors are on the device that computed them, and reading one on the host synchronises
    name      of this plugin in the recipe, which is a loss's key in `losses`
    returns   further metrics for this step's line (numbers or scalar tensors), or None
    """
    raise NotImplementedError


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
) -> dict[str, Any]:
    """Evaluate the model on held-out text or on other data; the result is stored as `probes.NAME`.

    Called in evaluation mode, without gradients. Before training it is called once more with the teacher as `model`,
    for `teacher.probes` of the result: evaluate `model`, and use `teacher` only to compare the two.

    model, teacher  the modules, heads in place; teacher is None where the recipe has none or the teacher is `model`
    batches         held-out batches on the device; may be iterated over several times
    predict         predict(model, batch) yields (log-probabilities [n, V] float32, labels [n]) for each chunk of the
                    batch's answer tokens, in order. The batch may come from `neoplug.collate`; V is the vocabulary that
                    teacher and student share
    tokenizer       of the student; a shared token has the same id in the teacher
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
