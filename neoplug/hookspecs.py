"""The run in pseudocode, each hook at its place; then the hooks, in call order.

    recipe = read(RECIPE, overrides)
    check(recipe)                                                   before anything is loaded
    rows = tokenise(recipe.data);  train, held_out = split(rows)
    student = load in full precision
    prepare_student(student, batches, rng)                          pruning; stored once, then loaded like any model
    for role in teacher, student:
        model = load(**load_kwargs(role))                           quantisation
        after_load(model, role)
    before = evaluate(student);  on_evaluate(...)                   the fixed ruler and the probes
    model = add_adapter(student, batches, total_steps, rng)         only what it adds is trainable
    optimizer = make_optimizer(param_groups(model, learning_rate), model)
    for step in range(max_steps):
        for batch in the step's micro-batches:
            edit_batch(batch, progress, rng)
            for chunk of the batch's answer tokens:
                token_loss(student, teacher, labels, progress)      or token_gradient, where the loss has a closed form
                token_weight(student, teacher, labels, position, progress)    times loss and gradient of each token
        divide by the step's answer tokens
        penalty(model, progress)                                    added as it is, once a step
        clip, optimizer.step()
        on_step_end(step, progress, model, metrics, name)
        every eval_steps: on_evaluate(...);  every save_steps: on_save(model, path), state_dict()
    after = evaluate(model)
    base_weights(model);  save_adapter(model, path);  on_train_end(model, result)
    later, `neoplug export`: merge_adapter(model)

A plugin is a dataclass whose fields are its options; a method with a hook's name and `@hookimpl` answers that hook, and
may take any subset of the hook's arguments. Plugins are called in the order of their names.

N answer tokens of one chunk, V shared vocabulary. `model` is the transformers (or peft) module itself, head in place.
`rng` is a torch.Generator on the CPU seeded by (seed, plugin name): one more plugin shifts no other plugin's stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

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
Function = TypeVar("Function", bound=Callable[..., Any])

# Which hooks make a plugin fit for a section: it must implement at least one of these.
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


def answers(rule: Literal["all", "each loss", "exactly one", "at most one"]) -> Callable[[Function], Function]:
    """State as data how many plugins may answer a hook; registry, command line and docs read it."""

    def mark(function: Function) -> Function:
        function.answers = rule  # type: ignore[attr-defined]
        return function

    return mark


@hookspec
@answers("all")
def check(recipe: Recipe) -> list[Problem]:
    """Say what this plugin cannot stand on. Called once, before any model or file is touched; import no torch here.

    recipe   the typed recipe, not yours to change; `recipe.student.load` is a map plugin name -> options, and so on
    returns  problems (an empty list is fine); `Problem.path`, as ("adapter", "pissa"), becomes the line in the recipe
    """
    raise NotImplementedError


@hookspec
@answers("all")
def prepare_student(model: PreTrainedModel, batches: Iterable[Batch] | None, rng: Generator) -> None:
    """Change the bare student in place, in float32 on the CPU: pruning. The result is stored under its content hash.

    batches  training micro-batches in the recipe's order, as many as you care to draw; None under `plan` and where a
             run rehearses it before weights are loaded: the model is on the meta device then
    Update `model.config` with what you change: the stored model is loaded by it.
    """
    raise NotImplementedError


@hookspec
@answers("all")
def load_kwargs(role: Role) -> dict[str, Any]:
    """Return keyword arguments for `from_pretrained`. The same key from two plugins is an error.

    Called for the model whose `load` section names the plugin; `role` says whose that is.
    """
    raise NotImplementedError


@hookspec
@answers("all")
def after_load(model: PreTrainedModel, role: Role) -> None:
    """Change a loaded model in place: k-bit preparation, workarounds. `load` plugins see their own model, others both.

    model  frozen and on its device, before any adapter
    role   whose it is
    """
    raise NotImplementedError


@hookspec
@answers("exactly one")
def add_adapter(
    model: PreTrainedModel, batches: Iterable[Batch] | None, total_steps: int, rng: Generator
) -> torch.nn.Module:
    """Add the adapter and return the model that trains; what has `requires_grad` afterwards is what trains.

    model        all of it frozen; on the meta device, and `batches` None, under `plan` and where a run rehearses it
    batches      training micro-batches in the recipe's order, as many as you care to draw; also None where `export`
                 rebuilds an adapter that is no peft before it loads its trained weights
    total_steps  optimizer steps of the whole run
    returns      a module called as the model is called; neoplug casts what is trainable to float32
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
def param_groups(model: torch.nn.Module, learning_rate: float) -> list[dict[str, Any]]:
    """Return torch optimizer groups (`params`, `lr`, ...) that cover each trainable parameter exactly once.

    model          as `add_adapter` left it
    learning_rate  the recipe's, the base of all groups' `lr`
    """
    raise NotImplementedError


@hookspec
@answers("exactly one")
def make_optimizer(groups: list[dict[str, Any]], model: torch.nn.Module) -> torch.optim.Optimizer:
    """Return a torch optimizer over `groups`.

    groups  each has `params` and `lr`; together all that trains
    model   as `add_adapter` left it, to tell what a parameter is; on the meta device under `plan` and where a run
            rehearses it before weights are loaded
    """
    raise NotImplementedError


@hookspec
@answers("all")
def edit_batch(batch: Batch, progress: float, rng: Generator) -> None:
    """Change a training micro-batch in place, on the CPU, before teacher and student see it.

    batch     see neoplug.data.batch.Batch: `labels` [N] may be rewritten; shortening `positions`, `labels` and `rows`
              together drops answer tokens from the objective
    progress  0.0 at the first optimizer step, 1.0 at the last
    rng       depends on the seed, this plugin's name, the step and the micro-batch: a resumed run draws the same
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
def token_loss(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> Tensor:
    """Say what each token costs. Called for each chunk of answer tokens, many times a step.

    student   [N, V] float32 log-probabilities at temperature 1; carries the gradient
    teacher   [N, V] float32 log-probabilities; no gradient; not yours to change
    labels    [N] int64; masked positions never arrive
    progress  0.0 at the first optimizer step, 1.0 at the last
    returns   [N] float32 nats, finite. No mean, mask, shift or weight: the loop does these, once for all losses
    """
    raise NotImplementedError


@hookspec
@answers("each loss")
def token_gradient(student: Tensor, teacher: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
    """Optional, beside `token_loss`: the loss and its closed-form gradient. No autograd runs here.

    student, teacher, labels, progress   as for `token_loss`, but without gradient
    returns   [N] the loss and [N, V] its gradient with respect to the student's *logits* (not log-probabilities)
    """
    raise NotImplementedError


@hookspec
@answers("all")
def token_weight(student: Tensor, teacher: Tensor, labels: Tensor, position: Tensor, progress: float) -> Tensor:
    """Say how much each answer token counts. Several answers are multiplied; no autograd runs here.

    Weights multiply each token's loss and gradient, of all losses alike. The loop still divides by the number of answer
    tokens, so weights whose mean is not 1 also change the step; `loss` and `losses` of the metrics are weighted so.

    student, teacher, labels, progress   as for `token_loss`, but without gradient, and not yours to change
    position  [N] int64, 0 for the first token of its answer. An answer is a run of answer tokens with none between that
              is not scored: an assistant's turn with what ends it, or under `train_on: all` the document. Treatments
              that drop or rewrite labels shift nothing; a window of a long document counts from its own first
    returns   [N] float32, finite and at least 0: others end the run at the next log line
    """
    raise NotImplementedError


@hookspec
@answers("all")
def penalty(model: torch.nn.Module, progress: float) -> Tensor:
    """Return a scalar added to the objective once an optimizer step, with gradient; logged apart from `loss`.

    model     as `add_adapter` left it
    progress  0.0 at the first optimizer step, 1.0 at the last
    """
    raise NotImplementedError


@hookspec
@answers("all")
def on_step_end(
    step: int, progress: float, model: torch.nn.Module, metrics: dict[str, Any], name: str
) -> dict[str, Any] | None:
    """Act after the optimizer step. Gradients are still there.

    step      1 after the first optimizer step
    progress  what this step's losses saw: 0.0 at the first optimizer step, 1.0 at the last
    metrics   of this step: `step`, `counts` [2] int64 (answer tokens, tokens), `sums` [K] float32 nats summed over
              answer tokens in the order of the losses' names, `losses` {name: nats per answer token}, `grad_norm`,
              `penalty`; tensors on the device where they were computed: to read one on the host synchronises
    name      what the recipe calls this plugin: a loss finds itself in `losses` by it
    returns   more metrics for this step's line (numbers or scalar tensors), or None
    """
    raise NotImplementedError


@hookspec
@answers("all")
def on_evaluate(
    model: torch.nn.Module,
    teacher: torch.nn.Module | None,
    batches: Iterable[Batch],
    predict: Callable[[torch.nn.Module, Batch], Iterator[tuple[Tensor, Tensor]]],
    tokenizer: PreTrainedTokenizerBase,
) -> dict[str, Any]:
    """Measure the model on held-out text or your own; the answer stands in results as `probes.NAME`.

    Runs in evaluation mode, without gradients. Before training it is called once more with the teacher as `model`, for
    the result's `teacher.probes`: so measure `model`, and leave the teacher alone unless you compare the two.

    model, teacher  the modules themselves, heads in place; teacher is None where the recipe has none, and where the
                    teacher itself is the model
    batches         held-out batches on the device; iterate as often as you like
    predict         predict(model, batch) yields (log-probabilities [n, V] float32, labels [n]) chunk by chunk over the
                    batch's answer tokens, in order: the vocabulary is never whole. The batch may be your own, made by
                    `neoplug.data.batch.collate`; V is what teacher and student share
    tokenizer       the student's; what both know has the same ids in both
    returns         JSON-ready numbers, lists and maps
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
def base_weights(model: torch.nn.Module) -> dict[str, Tensor]:
    """Return what the adapter stands on where no file of an adapter turns that back into the student as it came.

    The run then ships it as `student/`, beside the adapter. Called on the main process, once, at the end.

    returns  all weights of the bare student, by its own names; not copies: neoplug writes them and changes none
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
def save_adapter(model: torch.nn.Module, path: Path) -> None:
    """Write the adapter to the existing folder `path` in a form that the original base can be loaded with.

    Without an answer neoplug writes peft's own files, or for a model that is no PeftModel the whole model.
    """
    raise NotImplementedError


@hookspec
@answers("at most one")
def merge_adapter(model: torch.nn.Module) -> PreTrainedModel:
    """Return a plain transformers model that computes what `model` computes. Without an answer: peft's own merge."""
    raise NotImplementedError


@hookspec
@answers("all")
def on_save(model: torch.nn.Module, path: Path) -> None:
    """Write files of your own into a checkpoint; `path` is renamed into place afterwards. Main process only."""
    raise NotImplementedError


@hookspec
@answers("all")
def on_train_end(model: torch.nn.Module, result: dict[str, Any]) -> None:
    """See the result before it is written; add keys of your own, change none. Called on every rank."""
    raise NotImplementedError
